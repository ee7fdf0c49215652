"""The pictures of a run: which they are, and whether they still are what they were.

    name = path below the folder that holds them all;     known by name and bytes, and once read by SHA-256

Hashes are taken as pictures are read. When a run goes on, those that were encoded are read again only where their times
have changed, as after a copy to another disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from odesampler import images
from odesampler.files import sha256


class Read(NamedTuple):
    """What came of reading a picture."""

    picture: Tensor | None  # (channels, height, width); None: it cannot be read
    why: str  # it cannot
    seen: dict[str, Any]  # time and hash of the file, as far as there is one


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in order."""

    paths: Sequence[Path]

    @cached_property
    def names(self) -> list[str]:
        """What tells each from the others, wherever the folder that holds them all is."""
        whole = [os.path.abspath(path) for path in self.paths]
        above = os.path.join(os.path.commonpath({os.path.dirname(path) for path in whole}), "")
        return [path[len(above) :].replace(os.sep, "/") for path in whole]

    def fingerprint(self) -> str:
        """A short hash of all names and sizes."""
        digest = hashlib.sha256()
        for name, path in zip(self.names, self.paths, strict=True):
            size = path.stat().st_size if path.is_file() else None
            digest.update(os.fsencode(f"{name} {size}\n"))
        return digest.hexdigest()[:16]

    def read(self, item: int, shape: tuple[int, ...] | None, whole: bool) -> Read:
        """Picture `item`, as `images.read` takes it, or why it is none.

        Raises:
            OSError: The file cannot be read now; the picture may be good.
            MemoryError: There is no room for it.
        """
        path, name, seen = self.paths[item], self.names[item], dict[str, Any]()
        if os.path.lexists(path) and not path.is_file():  # to open what is neither file nor folder may wait for ever
            return Read(None, f"{name} is no file, or a link to none", seen)
        try:
            with open(path, "rb") as file:
                seen = {"mtime_ns": os.fstat(file.fileno()).st_mtime_ns, "sha256": sha256(file)}
                file.seek(0)
                return Read(images.read(file, name, shape, whole=whole), "", seen)
        except ValueError as error:
            return Read(None, str(error), seen)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        except MemoryError as error:
            raise MemoryError(f"no memory to read {path}") from error

    def changed(self, items: range, seen: Mapping[str, Mapping[str, Any]]) -> Path | None:
        """The first of `items` that is not what it was when this was `seen` of it, by name."""
        for item in items:
            path, before = self.paths[item], seen.get(self.names[item])
            if not before or path.stat().st_mtime_ns == before["mtime_ns"]:
                continue
            with open(path, "rb") as file:
                if sha256(file) != before["sha256"]:
                    return path
        return None
