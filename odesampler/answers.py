"""Answers: a network's, made their caller's own.

    its first two of one shape lie at the same place in memory  ->  every answer is copied
    else                                                        ->  none is, from then on

CUDA graphs and engines with buffers of their own write each answer over the one before, which a solver of more than one
stage, or a batch in chunks, still has to read. The first answer is kept until the second has come, so that its place
cannot be given out again by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Answers:
    """Finds out whether a network answers where it answered before. A model owns one."""

    again: bool | None = None  # None: not known yet, and every answer is copied
    first: tuple[int, Tensor] | None = None  # with its place, which CUDA graphs no longer tell of a replaced one

    def own(self, answer: Tensor) -> Tensor:
        """`answer`, or a copy of it where the next one might replace it."""
        if self.again is None:
            self._compare(answer)
        return answer if self.again is False else answer.clone()

    def _compare(self, answer: Tensor) -> None:
        first, place = self.first, _place(answer)
        if not place:
            return
        if first is not None and first[1].shape == answer.shape:
            self.first, self.again = None, first[0] == place
        else:
            self.first = place, answer.detach()


def _place(tensor: Tensor) -> int:
    """Its address; 0 for what has no memory: tensors without values, and those of torch.func."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
