"""Images a second on a GPU: diffusers' DDIMPipeline as a user would write it, beside ours, side by side in one run.

A U-Net of the size for CIFAR-10 (google/ddpm-cifar10-32, 35.7 million parameters), random weights, 20 steps of DDIM.
Theirs is eager in float32, with torch's settings as they come. Ours is that too, and then with channels last, bfloat16
autocast, compiled, and compiled with CUDA graphs; each, but for the last, also captured: the whole solve as one graph.
Beside each of ours the same network alone, called as often: what no loop can be faster than. All ends with the images
on the host; wall clock, the device waited for at both ends.

Needs CUDA. `--tiny` is a trial of the program itself anywhere: a small network, "compiled" without a compiler.
"""

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import odesampler as ods
from odesampler.compiled import compiled

from .side_by_side import facts

STEPS = 20
OWN_GRAPHS = {"bf16, channels last, CUDA graphs"}  # a graph holds no others
BATCHES = (1, 256)
CIFAR: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
}


class Network(nn.Module):
    """The U-Net as a function of x_t and t."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Its prediction of the noise."""
        answer: Tensor = self.unet(x_t, t, return_dict=False)[0]
        return answer


def main() -> None:
    """Print the tables."""
    print(facts())
    if "--tiny" in sys.argv:
        compare(TINY, torch.device("cpu"), (1, 2), steps=2, repeats=1, tiny=True)
    elif torch.cuda.is_available():
        compare(CIFAR, torch.device("cuda"), BATCHES, STEPS, repeats=5)
    else:
        print("this needs CUDA, and there is none; --tiny tries the program itself on the CPU")


def compare(
    config: dict[str, Any], device: torch.device, batches: tuple[int, ...], steps: int, repeats: int, tiny: bool = False
) -> None:
    """Print images a second of each way and batch, and beside those of diffusers and of the network alone."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**config).to(device).eval()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million parameters, {steps} steps of DDIM")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of diffusers
        models = ways(unet, config["sample_size"], tiny)
        for batch in batches:
            runs = {"diffusers DDIMPipeline": theirs(unet, batch, steps)}
            for way, model in models.items():
                runs[way] = ours(model, batch, steps)
                runs[f"{way}, network alone"] = alone(model, batch, steps, device)
                if way not in OWN_GRAPHS:
                    runs[f"{way}, captured"] = captured(model, batch, steps)
            table(batch, in_turn(runs, repeats, device))


def ways(unet: nn.Module, size: int, tiny: bool) -> dict[str, ods.Model]:
    """Ours, from what theirs does to all that helps. Channels last change a network, hence a copy."""
    how: dict[str, Any] = {"schedule": ods.VP.linear(), "data_shape": (3, size, size)}
    plain, last = Network(unet), Network(copy.deepcopy(unet))
    fast = {"channels_last": True, "autocast": torch.bfloat16}
    options: dict[str, Any] = {"compiled": {"backend": "eager"} if tiny else True}
    if not tiny:
        options["CUDA graphs"] = {"mode": "reduce-overhead"}
    models = {
        "float32": ods.Model(plain, **how),
        "channels last": ods.Model(last, channels_last=True, **how),
        "bf16": ods.Model(plain, autocast=torch.bfloat16, **how),
        "bf16, channels last": ods.Model(last, **fast, **how),
    }
    for name, compile in options.items():
        models[f"bf16, channels last, {name}"] = ods.Model(last, compile=compile, **fast, **how)
    return models


def theirs(unet: nn.Module, batch: int, steps: int) -> Callable[[], object]:
    """A pipeline, as its page shows it, but for the conversion to PIL images."""
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=batch, num_inference_steps=steps, output_type="np").images


def ours(model: ods.Model, batch: int, steps: int) -> Callable[[], object]:
    """`ods.sample`."""
    return lambda: ods.sample(model, batch, solver="ddim", num_steps=steps).x.cpu()


def captured(model: ods.Model, batch: int, steps: int) -> Callable[[], object]:
    """`ods.capture`, made beforehand."""
    draw = ods.capture(model, batch, solver="ddim", num_steps=steps)
    return lambda: draw().x.cpu()


def alone(model: ods.Model, batch: int, steps: int, device: torch.device) -> Callable[[], object]:
    """The network of `model`, called as often, with its precision, layout and compilation."""
    network = compiled(model.network, model.compile)
    layout = torch.channels_last if model.channels_last else torch.contiguous_format
    x = torch.randn(batch, *(model.data_shape or ()), device=device).to(memory_format=layout)
    t = torch.full((batch,), 500.0, device=device)

    def run() -> object:
        with torch.autocast(device.type, model.autocast) if model.autocast else nullcontext():
            for _ in range(steps):
                answer = network(x, t)
        return answer.cpu()

    return run


def in_turn(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median wall-clock seconds of each, one run of each after another. The first two warm up and compile."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):
        for name, run in runs.items():
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(took[2:]) for name, took in seconds.items()}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(batch: int, seconds: dict[str, float]) -> None:
    """Print images a second."""
    print(f"batch {batch:3}: {'images a second':>38}{'times diffusers':>18}{'of the network alone':>24}")
    first = seconds["diffusers DDIMPipeline"]
    for name, took in seconds.items():
        if name.endswith("network alone"):
            continue
        beside = seconds.get(f"{name.removesuffix(', captured')}, network alone")
        share = "" if beside is None else f"{beside / took:.2f}"
        print(f"  {name:36}{batch / took:11.1f}{first / took:18.2f}{share:>24}", flush=True)
