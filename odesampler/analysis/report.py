"""Reports: what an analysis found, as text in a terminal, as a page in a browser, as columns for other programs.

    report = sections;    section = a title, words, a table, a figure;    records = the numbers, with all digits

Every analysis says these three things of what it found, and nothing of how they are shown.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odesampler.analysis import page, tables
from odesampler.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as they are printed."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()  # lines below it
    expected: int = 0  # the first so many rows say what the others should be: they stay above them, however one sorts


@dataclass(frozen=True)
class Section:
    """A part of a report, shown in this order: words, table, figure."""

    title: str
    words: str = ""  # plain text: what is to be seen here
    table: Table | None = None
    draw: Callable[[], Figure] | None = None  # called when it is looked at


class Report(ABC):
    """What an analysis found; prints as its first section's table."""

    @property
    @abstractmethod
    def title(self) -> str:
        """One line: what was measured, of which model."""

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """The parts; the first has a table, the one that is printed."""

    @abstractmethod
    def records(self) -> Sequence[Mapping[str, Any]]:
        """The numbers behind the first table, a mapping a row, all with the same keys; None where there is none."""

    @property
    def _main(self) -> Table:
        table = self.sections()[0].table
        assert table is not None
        return table

    @property
    def head(self) -> tuple[str, ...]:
        """The head of the first table."""
        return tuple(self._main.head)

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the first table, row by row, without the head."""
        return [tuple(row) for row in self._main.rows]

    def table(self) -> str:
        """The first table as text, and its notes below."""
        return tables.text(self._main.head, self._main.rows, self._main.notes)

    def __repr__(self) -> str:
        return self.table()

    def to_csv(self, path: str | Path | None = None) -> str:
        """The records as comma-separated values, with all digits; written to `path`, if given."""
        records = self.records()
        head = list(records[0]) if records else []
        return tables.comma_separated(head, [[_cell(record[k]) for k in head] for record in records], path)

    def to_pandas(self) -> Any:
        """The records as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed; it comes with nothing here.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas (pip install pandas); to_csv does without") from error
        return pandas.DataFrame.from_records([dict(record) for record in self.records()])

    def to_html(self, path: str | Path | None = None, *, made: Mapping[str, Any] | None = None) -> str:
        """One page with all sections that needs no other file and no network; written to `path`, if given.

        Args:
            path: Where to write it, whole or not at all.
            made: What else its foot should say of how it was made, such as {"device": "cuda"}, beside the versions.
        """
        text = page.whole(self.title, self.sections(), made=made)
        if path is not None:
            with written_whole(path) as file:
                file.write(text.encode())
        return text

    def _repr_html_(self) -> str | None:
        try:
            return page.fragment(self.sections()[0])
        except Exception:  # a notebook then shows the text, and what is wrong with that
            return None


@dataclass(frozen=True, repr=False)
class Rows(Report):
    """Numbers that are a table and no more."""

    name: str
    numbers: Sequence[Mapping[str, Any]]  # all with the same keys

    @property
    def title(self) -> str:
        """One line for a page."""
        return self.name

    def sections(self) -> Sequence[Section]:
        """The numbers."""
        head = list(self.numbers[0]) if self.numbers else ["nothing"]
        rows = [[_printed(value) for value in numbers.values()] for numbers in self.numbers]
        return [Section(self.name, table=Table(head, rows))]

    def records(self) -> Sequence[Mapping[str, Any]]:
        """The numbers."""
        return self.numbers


def _printed(value: Any) -> str:
    """A value for a table: four digits, a dash for what is not there."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """A value for a file: nothing for what is not there."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
