"""Train a class-conditional network to predict noise, on any array of images.

    x_t = alpha * x0 + std * noise        alpha = sqrt(alpha_bar[t]), std = sqrt(1 - alpha_bar[t]), t = 0 .. T - 1
    loss = mean((network(x_t, t, label) - target)^2)       target: eps = noise, or v = alpha * noise - std * x0

The noise schedule comes in as its table `alpha_bar`; nothing else about it is known here. The loop counts steps, not
minutes, so that the same recipe gives the same weights on the same machine, interrupted or not.
"""

import copy
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from odesampler.files import written_whole


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images a step, drawn with replacement.
        learning_rate: Peak rate of AdamW; rises linearly over `warmup` steps and falls to zero along a cosine.
        warmup: Steps until the peak.
        weight_decay: As in AdamW.
        average: Decay of the moving average of the weights; shorter at first.
        label_dropout: Proportion of labels replaced by the null class, which makes guidance possible.
        prediction: What the network learns to say.
        seed: Fixes batches, noise and times. The network's first weights are the caller's.
        bf16: Run the network under bfloat16 autocast; weights, averages and loss stay in float32. Only with "v":
            solvers divide the error of eps by alpha, which may be 0.006 at the end, and bfloat16's 0.4 % ruins samples.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    average: float = 0.999
    label_dropout: float = 0.1
    prediction: Literal["eps", "v"] = "eps"
    seed: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Batch:
    """One training batch: what the network is given and what it should answer; batch-first tensors."""

    x_t: Tensor
    t: Tensor
    label: Tensor
    target: Tensor


def draw(
    images: Tensor, labels: Tensor, alpha_bar: Tensor, recipe: Recipe, null_label: int, g: torch.Generator
) -> Batch:
    """Draw a training batch.

    Args:
        images: Clean images in the model's data range, (n, channels, height, width).
        labels: Classes, int64, (n,).
        alpha_bar: The squared signal scale at each t, float64, (T,).
        recipe: For its batch size, prediction and label dropout.
        null_label: The label that means "any class".
        g: The one source of randomness, on the CPU, so that every device sees the same numbers.

    Returns:
        A batch on the images' device.
    """
    size, device = recipe.batch_size, images.device
    rows = torch.randint(len(images), (size,), generator=g)
    dropped = torch.rand(size, generator=g) < recipe.label_dropout
    # One time in each of `size` equal slices of the table: the loss is far less noisy than with independent times.
    place = (torch.arange(size) + torch.rand(size, generator=g)) / size
    t = (place * len(alpha_bar)).long().clamp(max=len(alpha_bar) - 1)
    noise = torch.randn(size, *images.shape[1:], generator=g).to(device)
    rows, dropped, t = rows.to(device), dropped.to(device), t.to(device)

    x0 = images[rows]
    squared = alpha_bar[t.to(alpha_bar.device)].to(device).reshape(-1, *[1] * (x0.ndim - 1))
    alpha, std = squared.sqrt().to(x0.dtype), (1 - squared).sqrt().to(x0.dtype)
    target = noise if recipe.prediction == "eps" else alpha * noise - std * x0
    return Batch(alpha * x0 + std * noise, t.to(x0.dtype), labels[rows].masked_fill(dropped, null_label), target)


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step (from 0) as a proportion of the peak."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights, in hexadecimal: the same for the same bits, wherever they lie."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted, and the function given tells of it; a second one acts at once.

    An exception in the middle of a step would leave weights half updated, from which no run goes on as it was.
    Where Ctrl-C does something else, in a background job or under another handler, or comes to another thread, it is
    left as it is.
    """
    noted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield noted.is_set
        return

    def note(*_: object) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Run:
    """A training run under way: all that must survive an interruption."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.start = digest(network)
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step = 0

    def advance(self, batch: Batch) -> float:
        """Take one optimiser step on a batch and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * learning_rate_factor(self.step, self.recipe)
        with torch.autocast(batch.x_t.device.type, dtype=torch.bfloat16, enabled=self.recipe.bf16):
            answer = self.network(batch.x_t, batch.t, batch.label)
        loss = F.mse_loss(answer.float(), batch.target.float())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

        # The first weights are worth forgetting quickly.
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        self.step += 1
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write the run to a file, all or nothing."""
        state = {
            "recipe": asdict(self.recipe),
            "start": self.start,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        with written_whole(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            ValueError: The file belongs to a run with another recipe, or from other first weights.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"{path} was made with {state['recipe']}, not with {asdict(self.recipe)}; "
                "repeat the command that made it, or delete the file to start again"
            )
        if state.get("start") != self.start:
            raise ValueError(
                f"{path} is of a run that began from other weights than this one; "
                "repeat the command that made it, or delete the file to start again"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    null_label: int,
    alpha_bar: Tensor,
    recipe: Recipe,
    checkpoint: Path,
    checkpoint_minutes: float = 2.0,
) -> nn.Module:
    """Train a network and return the moving average of its weights.

    If `checkpoint` exists the run continues from it, to the same weights as if it had never stopped. The file stays
    when the run is done: delete it once the result is safe. At Ctrl-C the step under way is finished and the run saved.

    Args:
        network: Takes (x_t, t, label); trained in place, on the device where it lies.
        images: Clean images in the model's data range, (n, channels, height, width), on the network's device.
        labels: Classes, int64, (n,), on the same device.
        null_label: The label that means "any class".
        alpha_bar: The squared signal scale at each t, float64, (T,).
        recipe: How to train.
        checkpoint: Where to keep the run.
        checkpoint_minutes: How often to write it.

    Returns:
        The averaged network, in evaluation mode, without gradients.

    Raises:
        ValueError: The checkpoint belongs to another recipe, or to a run from other first weights.
        KeyboardInterrupt: Ctrl-C came, and the checkpoint has been written.
    """
    run = Run(network.train(), recipe)
    if checkpoint.exists():
        run.load(checkpoint)
    written, mean_loss = time.monotonic(), math.nan
    with (
        interruption() as interrupted,
        tqdm(total=recipe.steps, initial=run.step, desc="training", mininterval=1.0) as bar,
    ):
        while run.step < recipe.steps and not interrupted():
            loss = run.advance(draw(images, labels, alpha_bar, recipe, null_label, run.generator))
            mean_loss = loss if math.isnan(mean_loss) else 0.99 * mean_loss + 0.01 * loss
            bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - written > 60 * checkpoint_minutes:
                run.save(checkpoint)
                written = time.monotonic()
        run.save(checkpoint)
        if interrupted():
            raise KeyboardInterrupt
    return run.average.eval()
