"""Answers: a network's, made their caller's own.

    its first two of a shape lie at the same place in memory  ->  all of that shape are copied
    else                                                      ->  none is, from then on

CUDA graphs and engines with buffers of their own write each answer over the one before, which a solver of more than one
stage, or a batch in chunks, still has to read. The first answer is kept until the second has come, so that its place
cannot be given out again by chance. Not found out is who begins so later, or takes several buffers by turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

WAITING = 4  # shapes whose second answer is waited for: as many first ones are kept


@dataclass(eq=False)
class Answers:
    """Finds out whether a network answers where it answered before. A model owns one, and a copy of it another."""

    fresh: set[torch.Size] = field(default_factory=set)  # shapes whose answers lie in a new place each time
    same: set[torch.Size] = field(default_factory=set)  # and those whose answers do not; others are not known yet
    first: dict[torch.Size, tuple[int, Tensor]] = field(default_factory=dict)  # places too: CUDA graphs hide them later

    def own(self, answer: Tensor) -> Tensor:
        """`answer`, or a copy of it where the next one might replace it."""
        if answer.shape not in self.fresh and answer.shape not in self.same:
            self._compare(answer)
        return answer if answer.shape in self.fresh else answer.clone()

    def __reduce__(self) -> tuple[type[Answers], tuple[()]]:
        return Answers, ()

    def _compare(self, answer: Tensor) -> None:
        place, shape = _place(answer), answer.shape
        if not place:
            return
        before = self.first.pop(shape, None)  # whatever other threads do meanwhile
        if before is not None:
            (self.same if before[0] == place else self.fresh).add(shape)
            return
        for other in list(self.first)[: 1 - WAITING]:
            self.first.pop(other, None)
        self.first[shape] = place, answer.detach()


def _place(tensor: Tensor) -> int:
    """Its address; 0 for what has no memory: tensors without values, and those of torch.func."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
