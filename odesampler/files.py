"""Files: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def written_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a new file that gets the name `path` only when everything has been written and synced.

    Killed or failing in between leaves whatever was at `path` before. Until it is whole the file has no name where the
    system can do that (Linux), so that a killed process leaves no trace; elsewhere a hidden one beside `path`.

    Raises:
        OSError: The folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing where it did
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _unnamed(path.parent) or open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not part.exists():
                # The path is absolute, yet only with some src_dir_fd does Python follow the link that it names.
                os.link(f"/proc/self/fd/{file.fileno()}", part, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _unnamed(folder: Path) -> IO[bytes] | None:
    """A writable file without a name in `folder`; None where the system or the file system has no such thing."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except OSError:
        return None  # opening by name tells what is wrong, if anything is
