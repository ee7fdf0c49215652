"""Gradients of a solve without the graph of its evaluations: one step at a time is differentiated, last first.

    forward         z0 -> z1 -> ... -> zN                       no graph
    backward        g_k = (dz_{k+1} / dz_k)^T g_{k+1}           the graph of one step, made anew from z_k

    checkpointed    every z_k is kept: as many pictures as steps, and what the solver remembers
    reversible      zN is kept, and z_k rebuilt from z_{k+1} by the inverse step: the same for any number of steps

z is the whole state of a solver, x and memory. Both are exact gradients of the steps taken, not of the equation: equal
to plain backpropagation up to rounding, which rebuilding amplifies as the solver's inverse does (McCallum-Foster, 40
steps of "digits": 3e-5 relative in float32, 5e-14 in float64). The backward pass asks a checkpointed step once more
than plain, and a reversible one twice, forward; none of that is in `Solution.nfe`. States are kept at every step, not
at every sqrt(N)-th: a state is small beside what a network keeps of one evaluation.

The network must answer the same when asked again (no dropout). Steps out of and into infinity, one evaluation each,
keep their graph.

References:
    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174. Gomez et al. 2017, The Reversible
    Residual Network, arXiv:1707.04585. Kidger et al. 2021, Efficient and Accurate Gradients for Neural SDEs,
    arXiv:2105.13493, section 3 (the adjoint of a reversible solver).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from odesampler.drive import Tally
from odesampler.integrate import BackAlong, OnGrid
from odesampler.model import Cond, Model
from odesampler.noise import Noise
from odesampler.program import Draw, Invertible, Loop, Observer, Program, Sigma, Solved, Solver, State
from odesampler.registry import SOLVERS, spec_of

AnyGrad: TypeAlias = "bool | str"
WORDS = ("plain", "checkpointed", "reversible")
Ask: TypeAlias = Callable[..., Any]  # ask(program, cond=, noise=, tally=): what the program returns; the driver's `run`


class Link(NamedTuple):
    """A piece of a solve that is differentiated at once: a step, the start, or the step into zero."""

    ahead: Callable[[State], Program[State]]
    back: Callable[[State], Program[State]] | None = None  # undoes it; None: the state before it is kept
    number: int = 0  # of the step; 0: not one that observers are told about
    sigma: float = 0.0  # where it leads


@dataclass(frozen=True, eq=False)
class Differentiated(Loop):
    """A loop whose steps are differentiated one by one. The pieces of it are answered by `ask`, not by its own driver.

    The loop must be one that goes on from a state as it left it: along a part of the grid, and then along the rest.

    Raises:
        ValueError: A loop whose steps cannot be told apart; "reversible" for one that cannot be undone.
    """

    loop: Loop
    how: str  # "checkpointed" or "reversible"
    ask: Ask
    cond: Cond
    leaves: tuple[Tensor, ...]  # whatever else needs gradients: the network's parameters
    noise: Noise | None = None
    tally: Tally | None = None

    @property
    def reaches_infinity(self) -> bool:  # type: ignore[override]  # a fact of its loop
        return self.loop.reaches_infinity

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        state = self._through(state, [Link(_between(self.loop, sigmas[:1]))])  # a solver's first memory
        back = inverse_of(self.loop) if self.how == "reversible" else None
        steps = [
            Link(_between(self.loop, (s0, s1)), None if back is None else _between(back, (s1, s0)), i, s1)
            for i, (s0, s1) in enumerate(pairwise(sigmas), 1)
        ]
        for links in [[step] for step in steps] if back is None else [steps]:
            state = self._through(state, links, observe)
        return Solved(state)
        yield  # makes this a program

    def into_zero(self, state: State, s0: float) -> Program[State]:
        return self._through(state, [Link(lambda before: self.loop.into_zero(before, s0))])
        yield

    def _through(self, state: State, links: Sequence[Link], observe: Observer | None = None) -> State:
        watched = {k: v for k, v in self.cond.items() if v.is_floating_point() and v.requires_grad}
        stretch = _Stretch(self, links, state.sigmas, tuple(watched), 1 + len(state.memory))
        x, *memory = _Through.apply(stretch, observe, state.x, *state.memory, *watched.values(), *self.leaves)  # type: ignore[no-untyped-call]
        return State(x, tuple(memory), sigmas=stretch.sigmas)


def differentiated(loop: Loop, how: str | None, model: Model, ask: Ask, **given: Any) -> Loop:
    """`loop`, differentiated as `checked_grad` says; itself for None and plain. The rest as for `Differentiated`."""
    return loop if how in (None, "plain") else Differentiated(loop, str(how), ask, leaves=leaves_of(model), **given)


def checked_grad(grad: AnyGrad, loop: Loop) -> str | None:
    """One of `WORDS`, or None for no gradients.

    Raises:
        ValueError: Another word, or one that does not go with `loop`.
    """
    how = {True: "plain", False: None}[grad] if isinstance(grad, bool) else grad
    if how is None:
        return None
    if how not in WORDS:
        raise ValueError(f"grad must be False, True or one of {', '.join(WORDS)}; got {grad!r}")
    if torch.is_inference_mode_enabled():
        raise ValueError(f"grad={grad!r} asks for gradients, of which torch.inference_mode() keeps nothing: leave it")
    solver = getattr(loop, "solver", None)
    name = spec_of(solver if isinstance(solver, Solver) and loop.takes_steps else loop)
    if not loop.differentiable:
        raise ValueError(
            f"{name} computes outside torch, by solving equations (an implicit convention), or in whole numbers, "
            "so its result cannot be differentiated"
        )
    if how != "plain" and not (loop.takes_steps and loop.observable):
        raise ValueError(
            f'grad="{how}" goes through our own solvers on a fixed grid, step by step; {name} chooses its own steps, '
            "or takes them in another library: give num_steps and one of ods.solvers(), or grad=True"
        )
    if how == "reversible" and inverse_of(loop) is None:
        known = ", ".join(
            name for name, maker in SOLVERS.items() if isinstance(maker(), Invertible) and maker().differentiable
        )
        raise ValueError(
            f'grad="reversible" rebuilds each state by undoing a step, which {name} cannot: '
            f'use one of {known}, or grad="checkpointed"'
        )
    return how


def inverse_of(loop: Loop) -> Loop | None:
    """The loop that undoes the steps of `loop`; None: there is none."""
    if isinstance(loop, BackAlong):
        return OnGrid(loop.solver)
    exact = isinstance(loop, OnGrid) and isinstance(loop.solver, Invertible) and not loop.solver.stochastic
    return BackAlong(loop.solver) if exact else None  # type: ignore[attr-defined]


def leaves_of(model: Model) -> tuple[Tensor, ...]:
    """What of a model needs gradients: parameters of its network, each once, and null conditions."""
    network = model.network
    mine: list[Tensor] = list(network.parameters()) if isinstance(network, nn.Module) else []
    mine += [v for v in model.null_cond.values() if isinstance(v, Tensor) and v.is_leaf]
    return tuple(dict.fromkeys(t for t in mine if t.requires_grad))


@dataclass(eq=False)
class _Stretch:
    """Links that are differentiated together: all but the tensors, which autograd keeps."""

    loop: Differentiated
    links: Sequence[Link]
    sigmas: tuple[Sigma, ...]  # of the state; before the links, and after them once they are gone through
    watched: tuple[str, ...]  # conditions that need gradients
    width: int  # tensors of the state before the links
    kept: tuple[Sigma, ...] = ()  # of the state that is kept
    tape: _Tape | None = None

    def answered(self, program: Program[State], watched: Sequence[Tensor], noise: Any, tally: Tally | None) -> State:
        cond = {**self.loop.cond, **dict(zip(self.watched, watched, strict=True))}
        after: State = self.loop.ask(program, cond=cond, noise=noise, tally=tally)
        return after


class _Through(torch.autograd.Function):
    """(state, watched conditions, leaves) -> state, through the links of a stretch."""

    @staticmethod
    def forward(ctx: Any, stretch: _Stretch, observe: Observer | None, *given: Tensor) -> tuple[Tensor, ...]:
        loop, width, rest = stretch.loop, stretch.width, given[stretch.width :]
        watched = rest[: len(stretch.watched)]
        stretch.tape = None if loop.noise is None else _Tape(loop.noise)
        before = state = State(given[0], given[1:width], sigmas=stretch.sigmas)
        for link in stretch.links:
            state = stretch.answered(link.ahead(state), watched, stretch.tape, loop.tally)
            if observe is not None and link.number:
                observe(link.number, link.sigma, state.x, None)
        out = (state.x, *state.memory)
        kept = before if stretch.links[0].back is None else State(out[0], out[1:], sigmas=state.sigmas)
        stretch.sigmas, stretch.kept = state.sigmas, kept.sigmas
        ctx.stretch, ctx.width = stretch, 1 + len(kept.memory)
        ctx.save_for_backward(kept.x, *kept.memory, *rest)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'grad="checkpointed" and grad="reversible" give first derivatives only: '
                "take grad=True (plain) where create_graph=True is needed"
            )
        stretch: _Stretch = ctx.stretch
        x, *others = ctx.saved_tensors
        memory, rest = others[: ctx.width - 1], others[ctx.width - 1 :]
        watched = rest[: len(stretch.watched)]
        leaves = stretch.loop.leaves  # they are saved to notice changes only: hooks may hand back other objects
        state, totals = State(x, tuple(memory), sigmas=stretch.kept), cast("list[Tensor | None]", [None] * len(rest))
        for link in reversed(stretch.links):
            if link.back is not None:
                state = stretch.answered(link.back(state), watched, None, None)
            grads, found = _pulled_back(stretch, link, state, grads, watched, leaves)
            totals = [a if b is None else b if a is None else a + b for a, b in zip(totals, found, strict=True)]
        return None, None, *grads, *totals


def _pulled_back(
    stretch: _Stretch,
    link: Link,
    before: State,
    grads: Sequence[Tensor],
    watched: Sequence[Tensor],
    leaves: Sequence[Tensor],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Gradients in the state before a link, and in watched conditions and leaves, from those in the state after it."""
    starts = [t.detach().requires_grad_() for t in (before.x, *before.memory)]
    own = [t.detach().requires_grad_() for t in watched]  # detached: one may have been made from a leaf
    noise = None if stretch.tape is None else stretch.tape.again()
    with torch.enable_grad():
        state = State(starts[0], tuple(starts[1:]), sigmas=before.sigmas)
        after = stretch.answered(link.ahead(state), own, noise, None)
    reached = [(t, g) for t, g in zip((after.x, *after.memory), grads, strict=True) if t.requires_grad]
    asked = [*starts, *own, *leaves]
    _check_leaves([t for t, _ in reached], asked)
    found = torch.autograd.grad([t for t, _ in reached], asked, [g for _, g in reached], allow_unused=True)
    n = len(starts)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(starts, found[:n], strict=True)), found[n:]


@dataclass
class _Tape:
    """Noise that can be played again."""

    noise: Noise
    drawn: list[Tensor] = field(default_factory=list)

    def draw(self, *asked: Any) -> Tensor:
        self.drawn.append(self.noise.draw(*Draw(*asked)))
        return self.drawn[-1]

    def again(self) -> _Played:
        return _Played(iter(self.drawn))


@dataclass
class _Played:
    """What a tape holds."""

    drawn: Iterator[Tensor]

    def draw(self, *asked: Any) -> Tensor:
        return next(self.drawn)


def _between(loop: Loop, sigmas: Sequence[float]) -> Callable[[State], Program[State]]:
    """`loop` along `sigmas`, as it is for a link."""

    def link(state: State) -> Program[State]:
        return (yield from loop.across(state, sigmas)).state

    return link


def _check_leaves(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raises: RuntimeError: `tensors` depend on leaves that are not `known`, whose gradients would be lost."""
    rest, seen, ids = [t.grad_fn for t in tensors], set(), {id(t) for t in known}
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        rest += [after for after, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ids:
            raise RuntimeError(
                f"the network uses a tensor of shape {tuple(leaf.shape)} that requires gradients and is none of its "
                "parameters: make the network a torch.nn.Module that owns it, call requires_grad_(False) on it, or "
                "take grad=True (plain)"
            )
