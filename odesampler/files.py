"""Files: written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def written_whole(path: str | Path, *, first: bool = False) -> Iterator[IO[bytes]]:
    """Open a new file that gets the name `path` only when everything has been written and synced.

    Killed or failing in between leaves whatever was at `path` before. Until it is whole the file has no name where the
    system can do that (Linux), so that a killed process leaves no trace; elsewhere a hidden one beside `path`, drawn by
    chance: processes in containers may have the same number.

    Args:
        path: The name.
        first: Leave what is at `path` by then, if anything is.

    Raises:
        OSError: The folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing where it did
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        unnamed = _unnamed(path.parent)
        with unnamed or open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            whole = unnamed is not None and _linked(file, path)  # at once: a kill finds no name in between to leave
            if unnamed is not None and not whole:
                _linked(file, part)
        if not whole:
            (_named_first if first else os.replace)(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether `path` is the hidden name of a file that is not whole."""
    return path.name.startswith(".") and path.suffix == ".part"


def sweep(folder: Path, age: float) -> None:
    """Remove the parts in `folder` that nobody has written to for `age` seconds: of processes that were killed."""
    for part in filter(is_part, folder.rglob("*.part")):
        with suppress(OSError):  # another process was first, or nothing can be removed here
            if time.time() - part.stat().st_mtime > age:
                part.unlink()


def sha256(file: IO[bytes]) -> str:
    """Of what is left to be read of `file`, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _linked(file: IO[bytes], path: Path) -> bool:
    """Give an open file without a name the name `path`; False where another file has it."""
    try:
        # The path is absolute, yet only with some src_dir_fd does Python follow the link that it names.
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=file.fileno(), follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def _named_first(part: Path, path: Path) -> None:
    """Give `part` the name `path` unless a file has it."""
    try:
        os.link(part, path)
    except OSError:  # there is one, or the file system has no links
        if not path.exists():
            os.replace(part, path)


def _unnamed(folder: Path) -> IO[bytes] | None:
    """A writable file without a name in `folder`; None where the system or the file system has no such thing."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except OSError:
        return None  # opening by name tells what is wrong, if anything is
