"""Settings of a configuration, each checked when it is read: what cannot be meant is refused by its key.

A configuration is JSON that someone else wrote, perhaps by hand: a value of the wrong kind would otherwise be a bare
error of torch, and one out of range a schedule that no network was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from odesampler.precision import is_number


class Settings:
    """A configuration with its defaults; knows how to complain."""

    def __init__(self, given: Mapping[str, Any], kind: str, name: str) -> None:
        self.given, self.kind, self.name = given, kind, name

    def __getitem__(self, key: str) -> Any:
        return self.given.get(key)

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raises: ValueError: always."""
        raise ValueError(f"{self.name} config: {key}={self[key]!r} {why}")

    def number(
        self, key: str, default: float | None = None, *, above: float = -math.inf, below: float = math.inf
    ) -> float:
        """What is given for `key`; `default` where nothing or None is.

        Raises: ValueError: no number, or not between `above` and `below`.
        """
        value: Any = self[key] if self[key] is not None else default
        if not is_number(value) or not above < value < below:
            ends = [(f" above {above:g}", above), (f" below {below:g}", below)]
            self.refuse(key, "must be a finite number" + " and".join(text for text, end in ends if math.isfinite(end)))
        return float(value)

    def whole(self, key: str, default: int | None = None, *, least: int) -> int:
        """Likewise, a whole number; 1000.0 is one.

        Raises: ValueError: none, or below `least`.
        """
        value: Any = self[key] if self[key] is not None else default
        if not is_number(value) or not math.isfinite(value) or value != int(value) or value < least:
            self.refuse(key, f"must be a whole number, {least} or more")
        return int(value)

    def one_of(self, key: str, choices: Mapping[str, Any] | tuple[str, ...], default: str | None = None) -> str:
        """Likewise, one of some words.

        Raises: ValueError: another.
        """
        value: Any = self[key] if self[key] is not None else default
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, f"is not one of {', '.join(choices)}")
        return value
