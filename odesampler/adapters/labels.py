"""Labels that networks of other libraries are told: whole numbers, of classes that they know.

A network is asked by whoever holds the model, and may be given labels that no verb has looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def checked_label(label: Tensor | None, fact: str, highest: int, known: Callable[[Tensor], Tensor]) -> Tensor:
    """`label` (batch,), if the network has such classes. Elsewhere than on the CPU that would wait: verbs have looked.

    Args:
        label: What it was given.
        fact: What the network says of its classes, such as "num_classes = 10".
        highest: The greatest label that there is, for the error.
        known: Of labels (batch,), whether there are such.

    Raises:
        ValueError: No label, one that is no whole number, or one of no class.
    """
    whole = label is not None and not label.is_floating_point()
    if label is None or not whole or (label.device.type == "cpu" and not bool(known(label).all())):
        raise ValueError(
            f'this network has {fact}: give cond={{"label": ...}}, whole numbers from 0 to {highest}; got '
            f"{None if label is None else label.tolist()}"
        )
    return label


def refuse_label(label: Tensor | None, fact: str) -> None:
    """Raises: ValueError: a label is given to a network that has none, as `fact` says."""
    if label is not None:
        raise ValueError(f"this network has {fact}, no classes: leave cond['label'] out")
