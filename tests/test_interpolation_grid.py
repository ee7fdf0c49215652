"""Between latents: slerp keeps their length, a straight line is flagged; the ends are the images themselves."""

import math

import pytest
import torch

import odesampler as ods

MODEL = ods.load("digits")
HELD = ods.held_out("digits")


def test_the_ends_of_rows_between_seeds_are_what_sample_gives():
    cond = {"label": [3, 4, 5, 6]}
    found = ods.interpolation_grid(MODEL, (7, 1, 4, 9), 5, cond=cond, solver="ddim", num_steps=6)
    alone = ods.sample(MODEL, seed=(7, 1, 4, 9), num_samples=4, cond=cond, solver="ddim", num_steps=6).x
    assert found.x.shape == (2, 5, 1, 8, 8)
    assert torch.allclose(found.x[:, [0, -1]].flatten(0, 1).float(), alone, atol=1e-4)
    assert found.names == (("seed 7", "seed 1"), ("seed 4", "seed 9"))
    assert found.turns.int().tolist() == [[0, 1, 0, 0]] * 2  # in the middle it is the later end's


def test_the_ends_of_rows_between_images_are_the_images():
    latent = ods.encode(MODEL, HELD.images[:4], cond={"label": HELD.labels[:4]}, num_steps=8)
    found = ods.interpolation_grid(MODEL, latent, 4)
    assert torch.allclose(found.x[:, [0, -1]].flatten(0, 1).float(), HELD.images[:4], atol=1e-6)
    one = ods.decode(MODEL, ods.interpolate(latent.select([2]), latent.select([3]), 4)).x
    assert torch.allclose(found.x[1], one, atol=1e-9)


def test_the_corners_of_a_square_are_its_ends_and_its_edges_are_rows():
    how = {"cond": {"label": 5}, "solver": "ddim", "num_steps": 4}
    found = ods.interpolation_grid(MODEL, range(4), 3, square=True, **how)
    rows = ods.interpolation_grid(MODEL, range(4), 3, **how)
    columns = ods.interpolation_grid(MODEL, (0, 2, 1, 3), 3, **how)
    assert torch.allclose(found.x[[0, -1]], rows.x)
    assert torch.allclose(found.x[:, [0, -1]].transpose(0, 1), columns.x)
    assert not found.turns.any()


def test_each_quarter_of_a_square_has_the_condition_of_its_corner():
    cond = {"label": [1, 2, 3, 4]}
    found = ods.interpolation_grid(MODEL, range(4), 3, square=True, cond=cond, solver="ddim", num_steps=4)
    x = found.latents[[0, 0, 2, 2], [0, 2, 0, 2]]
    alone = ods.sample(MODEL, x=x, cond=cond, solver="ddim", num_steps=4, state_dtype=torch.float64).x
    assert torch.allclose(found.x[[0, 0, 2, 2], [0, 2, 0, 2]], alone, atol=1e-4)
    assert found.turns.int().tolist() == [[1, 0]] * 3


def test_rows_between_latents_at_infinity_are_decoded():
    """What such a latent keeps to notice that it was changed is not kept for what lies between."""
    model = ods.exact.Gaussian(torch.linspace(-1, 1, 6), 0.3).model(ods.RectifiedFlow(), "flow")
    images = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latent = ods.encode(model, images, num_steps=6)
    assert latent.untouched is not None
    found = ods.interpolation_grid(model, latent, 3)
    assert torch.allclose(found.x[0, [0, -1]], images, atol=1e-9)


def test_slerp_keeps_the_length_and_a_straight_line_is_flagged():
    model = ods.exact.Gaussian(torch.zeros(2, 400), 0.5).model()
    slerp, line = (ods.interpolation_grid(model, range(4), 5, how=how, num_steps=3) for how in ("slerp", "linear"))
    assert not slerp.short.any()
    assert slerp.kept.min() > 0.99
    assert line.short.all()
    middle = (line.latents[:, 0] + line.latents[:, -1]) / 2
    assert torch.allclose(line.length[:, 2], middle.square().mean((1, 2)).sqrt())
    assert line.kept[:, 2].tolist() == pytest.approx([math.sqrt(0.5)] * 2, rel=0.05)
    assert 'take how="slerp"' in line.table()
    assert "slerp" not in slerp.table()
    assert slerp.angle.tolist() == pytest.approx([90, 90], abs=6)


def test_ends_of_different_lengths_are_said_to_be_the_reason_where_slerp_is_taken_already():
    """Between lengths of 1 and 0.1, 90 degrees apart, the great circle is longer than the line between these."""
    a = torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = between(torch.cat([a, 0.1 * a.roll(1)]))
    assert found.short.all()
    assert "the ends differ in length" in found.table()
    assert "take how" not in found.table()
    record = found.records()[0]
    lengths = found.latents[0].square().mean(1).sqrt()
    straight = torch.lerp(lengths[0], lengths[-1], torch.linspace(0, 1, 5, dtype=torch.float64))
    assert found.kept[0].tolist() == pytest.approx((lengths / straight).tolist())
    assert record["kept_at_most"] == pytest.approx((lengths / straight).max().item())
    assert record["kept_at_most"] > 1.1
    assert record["kept"] == pytest.approx(1)
    assert record["least_length"] == pytest.approx(lengths.min().item())
    assert f"{record['kept_at_most']:.3f}" in found.rows()[0]


def between(z):
    """The report of the slerp between two latents, which are their own images, (2, d)."""
    latents = ods.slerp(z[:1].expand(5, -1), z[1:].expand(5, -1), torch.linspace(0, 1, 5, dtype=torch.float64))[None]
    turns = torch.zeros(1, 4, dtype=torch.bool)
    return ods.InterpolationGrid(latents, latents, 1.0, turns, (("a", "b"),), False, "slerp", "m")


def test_the_mean_and_the_largest_jump_are_told_apart():
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = between(z * torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    jumps = (found.x[0, 1:] - found.x[0, :-1]).square().mean(1).sqrt()
    record = found.records()[0]
    assert record["mean_jump"] == pytest.approx(jumps.mean().item())
    assert record["largest_jump"] == pytest.approx(jumps.max().item()) != pytest.approx(record["mean_jump"])


def test_jumps_are_rms_distances_and_the_largest_is_told():
    """Between z and -z an odd map jumps evenly: along the circle by the chord, up to the factor of the data."""
    model = ods.exact.Gaussian(torch.zeros(16), 4.0).model(ods.VE(0.01, 100.0))
    found = ods.interpolation_grid(model, (0, 1), 9, solver="rk4", num_steps=40)
    alone = ods.sample(model, seed=(0, 1), num_samples=2, solver="rk4", num_steps=40, state_dtype=torch.float64).x
    assert torch.allclose(found.x[0, [0, -1]], alone, rtol=1e-9)
    assert found.length[0, 0] == pytest.approx(1, abs=0.5)  # in units of noise, which is of std 100 here
    turned = found.latents / found.latents.norm(dim=-1, keepdim=True)
    assert torch.allclose(found.x / found.x.norm(dim=-1, keepdim=True), turned, atol=1e-6)
    apart = (found.x[0, 5] - found.x[0, 4]).square().mean().sqrt().item()
    assert found.jumps[0, 4].item() == pytest.approx(apart)
    assert found.records()[0]["largest_jump"] == pytest.approx(found.jumps.max().item())


def test_the_picture_has_a_cell_an_image():
    found = ods.interpolation_grid(MODEL, (0, 1), 3, num_steps=2, cond={"label": [0, 1]})
    assert len(found.plot().axes) == 3
    lengths, jumps = found.plot_along().axes
    assert lengths.lines[0].get_ydata() == pytest.approx(found.length[0].tolist())
    assert jumps.lines[0].get_ydata() == pytest.approx(found.jumps[0].tolist())
    assert "in 1 rows the condition changes midway" in found.table()
    flat = ods.interpolation_grid(ods.exact.Gaussian(torch.zeros(4), 1.0).model(), (0, 1), 3, num_steps=2)
    assert [section.title for section in flat.sections()][1:] == ["Along the paths"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ends": (0, 1, 2)}, "needs two ends a row and num of 3 or more; got 3 ends"),
        ({"ends": (0, 1), "square": True}, "needs four ends"),
        ({"num": 2}, "got 2 ends, num=2"),
        ({"ends": (0, 1, 2, 2)}, r"nothing lies between equal seeds: give others than \[2, 2\]"),
        ({"ends": (0, 1, 2, 0), "square": True}, "nothing lies between equal seeds"),
        ({"how": "straight"}, 'how must be "slerp" or "linear"'),
        ({"solver": "ddpm"}, "draws noise"),
        ({"cond": {"lable": 1}}, "takes the conditions label"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ods.interpolation_grid(MODEL, **change)


def test_the_rows_of_a_square_say_how_far_down_they_are():
    figure = ods.interpolation_grid(MODEL, (0, 1, 2, 3), 3, square=True, num_steps=2).plot()
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == [f"left\n{v} down" for v in ("0.00", "0.50", "1.00")]


def test_a_latent_settles_how_it_is_decoded():
    latent = ods.encode(MODEL, HELD.images[:2], num_steps=3)
    with pytest.raises(ValueError, match="knows how it is decoded"):
        ods.interpolation_grid(MODEL, latent, num_steps=5)


@pytest.mark.filterwarnings("ignore:this latent has no memory")
def test_what_was_kept_of_the_images_themselves_is_no_part_of_what_lies_between():
    """Whole numbers have no between: they are left out. A residual is of the images: decoding adds it to none."""
    bits, residual = (ods.encode(MODEL, HELD.images[:2], num_steps=4, exact=exact) for exact in ("bits", "residual"))
    plain = ods.decode(MODEL, bits.without_memory()).x
    assert torch.allclose(ods.interpolation_grid(MODEL, bits, 3).x[0, [0, -1]], plain, atol=1e-9)
    assert torch.allclose(ods.interpolation_grid(MODEL, residual, 3).x[0, [0, -1]].float(), HELD.images[:2], atol=1e-6)
