"""A small class-conditional U-Net: the network of the embedded models.

    (x_t, t, label or embedding) -> eps or v, of the shape of x_t

`x_t = alpha * x0 + std * noise` is a noisy image in the model's own scale, `t` the place in the noise table that the
network was trained with (0 .. 999, fractions allowed), `label` a class; the last one, `num_classes`, is the null class.
To the network a class is a vector, which may be given itself, as `embedding`.
Residual blocks take time and class as a scale and shift of their normalised features; attention sits where asked;
`patch` folds squares of pixels into channels, so that larger pictures cost no more than small ones.

Nothing here depends on the batch, the noise schedule, or what the output means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
EMBEDDING_SCALE = 4  # embedding size, in base widths
# Fastest and slowest wave of the time embedding, radians per table unit. The usual fastest wave, 1, lets the network
# wiggle between the whole t of its training, and a fourth-order solver then gains nothing from small steps.
FASTEST, SLOWEST = 0.05, 1e-4


@dataclass(frozen=True)
class UNetConfig:
    """What a `UNet` is built from; `UNetConfig(**json.loads(json.dumps(asdict(config))))` builds the same network.

    Attributes:
        channels: Channels of the image.
        num_classes: Classes without the null class, which becomes label `num_classes`.
        width: Unit of all widths; a multiple of 8.
        multipliers: Channels of each level in units of `width`; each level has half the resolution of the one before.
        blocks: Residual blocks per level, on the way down and again on the way up.
        attention: Levels (0 = full resolution) whose blocks are followed by self-attention.
        patch: Side of the square of pixels that is folded into channels first; 1 = off.
    """

    channels: int
    num_classes: int
    width: int
    multipliers: Sequence[int] = (1, 2)
    blocks: int = 1
    attention: Sequence[int] = (1,)
    patch: int = 1


def time_embedding(t: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Embed times as cosines and sines of geometrically spaced frequencies.

    Args:
        t: Times in table units, (batch,).
        size: Length of the embedding, even.
        dtype: Dtype of the network's weights.

    Returns:
        (batch, size), in `dtype`, or in float32 where that is coarser: bfloat16 cannot tell t = 996 from 999, and an
        embedding made in float32 would hide the last digits of a float64 network from order-of-convergence tests.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    place = torch.arange(size // 2, dtype=dtype, device=t.device) / (size // 2)
    phase = t.to(dtype)[:, None] * FASTEST * torch.exp(math.log(SLOWEST / FASTEST) * place)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a layer to zero, so that the branch it ends starts training as nothing at all."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Self-attention over all pixels, one head, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Map features (batch, channels, height, width) to features of the same shape."""
        # Written out: the fused kernels have no forward-mode derivative, which likelihoods and Jacobians need.
        q, k, v = self.qkv(self.norm(h)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(h.shape[1]), dim=-1)
        mixed = (v @ weights.transpose(1, 2)).reshape(h.shape)
        return h + self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Residual block, conditioned by a scale and shift, with optional attention after it."""

    def __init__(self, width_in: int, width: int, embedding: int, attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * width)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.attention = Attention(width) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map features (batch, width_in, height, width) and embedding (batch, size) to `width` channels."""
        scale, shift = self.condition(embedding)[:, :, None, None].chunk(2, dim=1)
        change = self.conv1(F.silu(self.norm1(h)))
        change = self.conv2(F.silu(self.norm2(change) * (1 + scale) + shift))
        result: Tensor = self.attention(self.skip(h) + change)
        return result


class UNet(nn.Module):
    """Class-conditional U-Net; see the module's docstring.

    Args:
        config: What to build.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        size = EMBEDDING_SCALE * config.width
        pixels = config.channels * config.patch**2
        # Each width as often as its level has blocks, with whether attention follows.
        order = [(width, i in config.attention) for i, width in enumerate(widths) for _ in range(config.blocks)]
        shrinking = list(pairwise(widths))

        self.time = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.label = nn.Embedding(config.num_classes + 1, size)
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(width, width, size, attention) for width, attention in order)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in shrinking)
        self.middle = Block(widths[-1], widths[-1], size, attention=order[-1][1])
        self.up = nn.ModuleList(Block(2 * width, width, size, attention) for width, attention in reversed(order))
        self.grow = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in reversed(shrinking))
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.out = zeroed(nn.Conv2d(widths[0], pixels, 3, padding=1))

    def embed(self, label: Tensor) -> Tensor:
        """Embeddings (batch, 4 * width) of classes, int64, (batch,), as `forward` takes them in place of labels."""
        embedding: Tensor = self.label(label)
        return embedding

    def _class(self, label: Tensor | None, embedding: Tensor | None) -> Tensor:
        if label is not None and embedding is None:
            return self.embed(label)
        size = self.label.embedding_dim
        if label is not None or embedding is None or embedding.shape[1:] != (size,):
            got = "both" if label is not None else "none" if embedding is None else f"shape {tuple(embedding.shape)}"
            raise ValueError(f"give a label, or an embedding (batch, {size}) such as network.embed(labels); got {got}")
        return embedding

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        """Predict from a noisy image, its time and its class.

        Args:
            x_t: Noisy images in the model's own scale, (batch, channels, height, width), in the weights' dtype; height
                and width are multiples of `patch * 2 ** (levels - 1)`.
            t: Times in table units, float, (batch,).
            label: Classes, int64, (batch,); `num_classes` is the null class.
            embedding: Instead of `label`, any point of the space in which classes lie: (batch, 4 * width), as `embed`
                gives it.

        Returns:
            The prediction, of the shape of `x_t`.

        Raises:
            ValueError: Height or width cannot be halved often enough; not one of label and embedding, or not in shape.
        """
        blocks = self.config.blocks
        unit = self.config.patch * 2 ** len(self.shrink)
        if x_t.shape[-1] % unit or x_t.shape[-2] % unit:
            raise ValueError(
                f"height and width must be multiples of {unit}, got {tuple(x_t.shape[-2:])}: pad the images"
            )
        weight = self.label.weight
        time = time_embedding(t, weight.shape[1], weight.dtype).to(weight.dtype)
        embedding = F.silu(self.time(time) + self._class(label, embedding))

        h = self.stem(F.pixel_unshuffle(x_t, self.config.patch))
        skips = []
        for index, block in enumerate(self.down):
            if index and index % blocks == 0:
                h = self.shrink[index // blocks - 1](h)
            h = block(h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for index, block in enumerate(self.up):
            if index and index % blocks == 0:
                h = self.grow[index // blocks - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.out(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.config.patch)
