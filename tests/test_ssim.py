"""Structural similarity: closed forms, and a double loop that shares no line with it."""

import math

import pytest
import torch

from odesampler.analysis.ssim import ssim


def by_hand(x, y, low, high, size=11, spread=1.5):
    """Wang et al., equations 13 to 17, window by window and pixel by pixel."""
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    half = size // 2
    weights = [
        [math.exp(-(i * i + j * j) / (2 * spread**2)) for j in range(-half, half + 1)] for i in range(-half, half + 1)
    ]
    total = sum(map(sum, weights))
    found = []
    for top in range(len(x) - size + 1):
        for left in range(len(x[0]) - size + 1):
            cells = [
                (weights[i][j] / total, x[top + i][left + j] - low, y[top + i][left + j] - low)
                for i in range(size)
                for j in range(size)
            ]
            mx, my = sum(w * a for w, a, _ in cells), sum(w * b for w, _, b in cells)
            vx, vy = sum(w * (a - mx) ** 2 for w, a, _ in cells), sum(w * (b - my) ** 2 for w, _, b in cells)
            cov = sum(w * (a - mx) * (b - my) for w, a, b in cells)
            found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("shape", "size", "spread"), [((13, 12), 11, 1.5), ((8, 9), 7, 1.5 * 7 / 11), ((5, 5), 5, 1.5 * 5 / 11)]
)
def test_it_is_what_a_double_loop_finds(shape, size, spread):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, *shape, generator=generator, dtype=torch.float64) * 3 - 1
    y = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for i, value in enumerate(ssim(x, y, (-1.0, 2.0)).tolist()):
        channels = [by_hand(x[i, c].tolist(), y[i, c].tolist(), -1.0, 2.0, size, spread) for c in range(2)]
        assert value == pytest.approx(sum(channels) / 2, abs=1e-12)


def test_equal_images_are_1_and_constant_ones_differ_by_brightness_alone():
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64), atol=1e-12)
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), -0.4)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 1.2 * 0.6 + c1) / (1.2**2 + 0.6**2 + c1)  # brightness counts from -1
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-6)


def test_a_negative_is_the_opposite_of_similar():
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(x, -x).item() < -0.5


def test_points_in_the_plane_and_other_shapes_are_refused():
    for y in (torch.zeros(2, 3), torch.zeros(2, 1, 8, 9)):
        with pytest.raises(ValueError, match="images of one shape"):
            ssim(torch.zeros(2, 1, 8, 8), y)
