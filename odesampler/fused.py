"""Fused solves: whatever lies between two calls of the network becomes one kernel, compiled by torch.

    f0 | network | f1 | network | ... | network | fn         each f: what solver, guidance and driver do in between

The operations of a solve on a fixed grid are those of any other solve on it. They are recorded once, as torch.fx knows
them, cut at the network's calls, and each piece is compiled: it reads and writes every array once, where operations one
by one would read and write each result. The network stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from odesampler.compiled import compiled
from odesampler.drive import Tally, Watch
from odesampler.model import Model
from odesampler.precision import autocasting
from odesampler.program import Solved, State

Solve: TypeAlias = "Callable[[Model], tuple[Solved, Tally, Watch]]"

_NUMBERS = count()
_ASKED: WeakValueDictionary[int, _Network] = WeakValueDictionary()  # numbers, since operations take no functions


class _Network(nn.Module):
    """The network of a model, as one operation; a module, so that it has the device of the network."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.called, self.autocast, self.number = model.network, model.autocast, next(_NUMBERS)
        _ASKED[self.number] = self

    def forward(self, x_t: Tensor, t: Tensor, /, **cond: Tensor) -> Tensor:
        answer: Tensor = _ask_operation()(self.number, x_t, t, ",".join(cond), list(cond.values()))
        return answer

    def answer(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """As `Model.ask` would have it, under its autocast."""
        called = autocasting(self.called, self.autocast) if self.autocast else self.called
        out = called(x_t, t, **cond)
        return out.clone() if out.untyped_storage().data_ptr() == x_t.untyped_storage().data_ptr() else out


class _Piece(nn.Module):
    """What lies between two calls of the network; compiled when it is first called.

    By torch's compiler without what it does before each call of torch.compile, which takes longer than the piece: here
    shapes, dtypes and devices are always the same.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self._graph, self._made = [graph], list[Callable[..., Any]]()  # in lists: no parts of the module

    def forward(self, *inputs: Tensor) -> Any:
        if not self._made:
            import torch._inductor

            self._made.append(torch._inductor.compile(self._graph[0], list(inputs)))
        return self._made[0](*inputs)


def fused(solve: Solve, model: Model) -> Callable[[], tuple[Solved, Tally, Watch]]:
    """`solve` of `model`, recorded, with all but the network compiled. It must read and write at fixed places.

    Args:
        solve: What it does must depend on the grid alone, not on values.
        model: The model.

    Returns:
        What solves again. It is compiled: the first of them has been made.

    Raises:
        RuntimeError: Something in it reads a value.
    """
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.passes.split_module import split_module

    network = _Network(model)
    opaque = replace(model, network=network, dtype=model.network_dtype, autocast=None, compile=False)
    solve(opaque)  # what is computed once and kept, on the host, is no part of the recording
    found: list[tuple[Solved, Tally, Watch]] = []

    def outcome() -> list[Tensor]:
        found.append(solve(opaque))
        solved, _, watch = found[-1]
        return [solved.state.x, *(total for _, total in watch.kept)]

    try:
        graph = make_fx(outcome)()
    except RuntimeError as error:
        if "tracing tensor" not in str(error):  # out of memory, or the network's own
            raise
        raise RuntimeError(
            f"the solve of {model.name} could not be recorded: something between two calls of the network reads a value"
        ) from error
    network.called = compiled(model.network, model.compile)  # not before: what is compiled cannot be recorded
    graph.graph.eliminate_dead_code()
    calls, pieces = 0, dict[str, int]()
    for node in graph.graph.nodes:
        asks = node.op == "call_function" and node.target is _ask_operation().default
        pieces[node.name] = 2 * calls + asks  # odd: a call of the network
        calls += asks
    whole = split_module(graph, nn.Module(), lambda node: pieces[node.name], keep_original_order=True)
    for name, piece in whole.named_children():
        if isinstance(piece, GraphModule) and int(name.removeprefix("submod_")) % 2 == 0:
            setattr(whole, name, _Piece(piece))
    whole()
    _, tally, watch = found[-1]

    def launch(network: _Network = network) -> tuple[Solved, Tally, Watch]:  # kept alive by this
        x, *totals = whole()
        kept = [(sigma, total) for (sigma, _), total in zip(watch.kept, totals, strict=True)]
        return Solved(State(x)), tally, Watch(reads=False, kept=kept)

    return launch


def _ask_operation() -> Any:
    """The operation, made when first needed."""
    if not hasattr(torch.ops.odesampler, "ask"):
        torch.library.custom_op("odesampler::ask", _ask, mutates_args=())
    return torch.ops.odesampler.ask


def _ask(number: int, x_t: Tensor, t: Tensor, names: str, values: list[Tensor]) -> Tensor:
    return _ASKED[number].answer(x_t, t, dict(zip(names.split(","), values, strict=True)) if names else {})
