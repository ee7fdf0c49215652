"""What a long computation has found so far: in memory, and in a file from which it goes on after a kill.

    file = tensors + facts (JSON) + the question that they answer (JSON),     written whole or not at all

Nothing is asked twice: `once` hands back what is known. So a computation that is deterministic gives the same with any
number of interruptions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odesampler.files import written_whole
from odesampler.tensor_file import read_tensors, write_tensors

FORMAT = "odesampler.unfinished/1"
EVERY = 20.0  # seconds between two writes of what changes all the time


class Resumable:
    """Tensors and facts by name.

    Args:
        path: The file, .safetensors; read if it is there. None: in memory only.
        question: What is being computed, as JSON can hold it.

    Raises:
        ValueError: The file is none of ours, or damaged, or answers another question; not a .safetensors.
    """

    def __init__(self, path: str | Path | None, question: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.question: dict[str, Any] = json.loads(json.dumps(question))
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {}
        self._written = time.monotonic()
        if self.path is not None:
            if self.path.suffix != ".safetensors":
                raise ValueError(f"a checkpoint is written as .safetensors; got {self.path}")
            if not self.path.parent.is_dir():
                raise ValueError(f"the folder of the checkpoint {self.path} does not exist")
            if self.path.exists():
                self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            self.tensors, meta = read_tensors(path)
            held, self.facts = json.loads(meta["question"]), json.loads(meta["facts"])
            if meta["format"] != FORMAT:
                raise ValueError(f"its format is {meta['format']!r}, this version reads {FORMAT!r}")
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{path} is no checkpoint of this library, or a damaged one: {error}") from error
        if held != self.question:
            other = sorted(k for k in held.keys() | self.question.keys() if held.get(k) != self.question.get(k))
            raise ValueError(
                f"the checkpoint {path} is of something else, it differs in {', '.join(other)}: "
                "delete it, or give another path"
            )

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that name; made and written down if it is not known yet."""
        if name not in self.tensors:
            self.tensors[name] = make().detach().cpu()
            self.write()
        return self.tensors[name]

    def fact(self, name: str, make: Callable[[], Any]) -> Any:
        """The fact of that name, likewise; as JSON can hold it."""
        if name not in self.facts:
            self.facts[name] = json.loads(json.dumps(make()))
            self.write()
        return self.facts[name]

    def write(self, *, sparing: bool = False) -> None:
        """Write the file; `sparing`: only if the last time was a while ago."""
        if self.path is None or (sparing and time.monotonic() - self._written < EVERY):
            return
        facts = {"format": FORMAT, "question": json.dumps(self.question), "facts": json.dumps(self.facts)}
        with written_whole(self.path) as file:
            write_tensors(file, self.tensors, facts)
        self._written = time.monotonic()

    def done(self) -> None:
        """Nothing is left to do: the file goes."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
