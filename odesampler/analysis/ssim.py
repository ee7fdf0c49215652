"""Structural similarity of images: brightness, contrast and structure, compared in windows.

    ssim = mean over windows of   (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))

m, s^2, s_xy are means, variances and the covariance under a Gaussian window, c1 = (0.01 L)^2, c2 = (0.03 L)^2, and L is
the width of the data range. Values count from its lower end, as brightness does from black. Windows lie wholly inside
the image; the means are over all of them and over the channels. 1: equal.

References:
    Wang, Bovik, Sheikh, Simoncelli 2004, Image Quality Assessment: From Error Visibility to Structural Similarity,
    IEEE Transactions on Image Processing 13, equations 13 to 17; the window of 11 pixels, 1.5 of standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SPREAD = 11, 1.5  # pixels: edge and standard deviation
FIRST, SECOND = 0.01, 0.03  # K1 and K2: what keeps the quotients from 0 / 0, in parts of the range


def ssim(x: Tensor, y: Tensor, data_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Structural similarity of images `x` and `y`, (batch, channels, height, width), (batch,) float64.

    Images of less than 11 pixels get the largest odd window that fits, with a Gaussian narrower in proportion.

    Raises:
        ValueError: No images, or of different shapes.
    """
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            f"ssim compares images of one shape, (batch, channels, height, width); got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    low, high = data_range
    a, b = ((v.detach().cpu().double() - low).flatten(0, 1)[:, None] for v in (x, y))
    window = _window(min(x.shape[2:]))
    moments = torch.cat([a, b, a * a, b * b, a * b], 1)  # (images, 5, height, width)
    mx, my, xx, yy, xy = conv2d(moments, window.expand(5, 1, *window.shape), groups=5).unbind(1)
    c1, c2 = ((k * (high - low)) ** 2 for k in (FIRST, SECOND))
    brightness = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    rest = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
    return (brightness * rest).flatten(1).mean(1).reshape(x.shape[:2]).mean(1)


def _window(edge: int) -> Tensor:
    """The Gaussian window for images of this shorter edge, (size, size), of sum 1."""
    size = min(WINDOW, edge - (edge + 1) % 2)
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-at.square() / (2 * (SPREAD * size / WINDOW) ** 2))
    line = line / line.sum()
    return line[:, None] * line
