"""Write the tables of docs/solvers.md from what the library says of itself: python docs/make_tables.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import odesampler as ods

PAGE = Path(__file__).parent / "solvers.md"


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Every table of the page, by name."""
    yes = {True: "yes", False: ""}
    solvers = [
        (
            ", ".join(f"`{name}`" for name in (f.name, *f.aliases)),
            *("" if v is None else v for v in (f.order, f.evaluations)),
            *(yes[v] for v in (f.error_estimate, f.invertible, f.stochastic)),
            f.summary,
        )
        for f in ods.solvers()
        if not f.name.startswith(("torchdiffeq:", "scipy:"))  # what those libraries have depends on their version
    ]
    head = ("name", "order", "evaluations a step", "adaptive", "invertible", "stochastic", "")
    grids = [
        (", ".join(f"`{name}`" for name in (g.name, *g.aliases)), ", ".join(f"`{p}`" for p in g.parameters), g.summary)
        for g in ods.grids()
    ]
    return {"solvers": markdown(head, solvers), "grids": markdown(("name", "parameters", ""), grids)}


def filled(page: str) -> str:
    """The page with its tables."""
    for name, table in tables().items():
        head, mark, rest = page.partition(f"<!-- {name}: ")
        comment, _, rest = rest.partition("\n")
        page = f"{head}{mark}{comment}\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
