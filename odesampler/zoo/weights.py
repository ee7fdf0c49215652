"""Read and write a `UNet` as one safetensors file that says all that is needed to use it.

Weights are stored in float16 and computed with in float32. The metadata are strings; `config` is the JSON of
`UNetConfig`, the other keys are the writer's and described there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from odesampler.files import written_whole
from odesampler.tensor_file import read_tensors, write_tensors
from odesampler.zoo.unet import UNet, UNetConfig


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a safetensors file, all or nothing."""
    with written_whole(path) as file:
        write_tensors(file, tensors, metadata)


def save_unet(path: Path, network: UNet, metadata: Mapping[str, str]) -> None:
    """Write a network's weights in float16, with its configuration and other metadata."""
    tensors = {name: tensor.to("cpu", torch.float16) for name, tensor in network.state_dict().items()}
    save_tensors(path, tensors, {"config": json.dumps(asdict(network.config)), **metadata})


def load_unet(path: Path) -> tuple[UNet, dict[str, str]]:
    """Read a network that `save_unet` wrote.

    Args:
        path: The safetensors file.

    Returns:
        The network, float32, on the CPU, in evaluation mode and without gradients; and the file's metadata.
    """
    tensors, metadata = read_tensors(path)
    network = UNet(UNetConfig(**json.loads(metadata["config"])))
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval().requires_grad_(False), metadata
