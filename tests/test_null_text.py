"""Null-text inversion: guided decoding that comes back, sample by sample, step by step."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.drive import run
from odesampler.guidance import guided
from odesampler.integrate import on_grid
from odesampler.registry import find_solver
from tests.problems import labelled, mixture

SHIFTED = ods.Model(labelled().network, ods.VE(), sigma_min=0.2, sigma_max=3.0, null_cond={"label": 0.0})
POINTS = mixture().sample(5, seed=1)
LABELS = {"label": torch.tensor([0.3, -0.2, 0.0, 0.5, 0.1])}
QUICK = {"num_steps": 6, "grid": "log_snr", "guidance_scale": 3.0, "learning_rate": 0.05}


def digits(count: int = 8, **options):
    model = ods.load("digits", embedded=True, **options)
    images, labels = ods.held_out("digits")
    return model, images[:count], {"embedding": model.network.embed(labels[:count])}


def rmse(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().flatten(1).mean(1).sqrt()


def found(model=SHIFTED, images=POINTS, cond=LABELS, **options):
    return ods.null_text(model, images, cond=cond, **{**QUICK, **options})


def test_guided_digits_come_back():
    model, images, cond = digits()
    latent = ods.null_text(model, images, cond=cond, guidance_scale=3.0, num_steps=20, learning_rate=0.1)
    with_null, without = (rmse(ods.decode(model, z).x, images) for z in (latent, latent.without_null()))
    assert (with_null < 0.5 * without).all()
    assert with_null.mean() < 0.05
    pivot = ods.encode(model, images, cond=cond, solver="ddim", num_steps=20)
    assert torch.equal(latent.x, pivot.x)
    assert latent.null["embedding"].shape == (8, 20, 64)
    assert latent.recipe.guidance_scale == 3.0


@pytest.mark.parametrize("solver", ["ddim", "heun", "midpoint", "rk4"])
def test_each_step_is_decoded_under_its_own_null_condition_its_end_included(solver):
    latent = found(solver=solver, early_stop=0.0)
    assert latent.null["label"].std(1).min() > 0, "conditions that were all the same would show nothing"
    for i in range(len(POINTS)):
        z, cond = latent.x[i : i + 1], {"label": LABELS["label"][i : i + 1]}
        for step, (s0, s1) in enumerate(pairwise(latent.recipe.sigmas)):
            one = replace(SHIFTED, null_cond={"label": latent.null["label"][i, step].item()})
            [state] = run(on_grid(find_solver(solver), z, (s0, s1)), model=guided(one, 3.0), cond=cond)
            z = state.x
        assert torch.allclose(ods.decode(SHIFTED, latent).x[i], z[0], atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_what_the_null_condition_can_mend_is_mended(solver):
    """Here eps is shifted by the label, so the null condition under which guidance does nothing is the label itself."""
    latent = found(solver=solver, num_steps=20, inner_steps=60, early_stop=0.0)
    assert (latent.null["label"] - LABELS["label"][:, None]).abs().mean() < 0.1
    back, usual = (rmse(ods.decode(SHIFTED, z).x, POINTS) for z in (latent, latent.without_null()))
    assert (back < 0.2 * usual)[LABELS["label"] != 0].all()


def test_batch_mates_and_chunks_do_not_matter():
    whole = found()
    assert torch.allclose(found(max_batch=4).null["label"], whole.null["label"], atol=1e-6)
    for i in (0, 3):
        alone = found(images=POINTS[i : i + 1], cond={"label": LABELS["label"][i : i + 1]})
        assert torch.allclose(alone.null["label"][0], whole.null["label"][i], atol=1e-6)
        assert alone.nfe[0] == whole.nfe[i]


def test_samples_that_are_near_enough_stop_changing_and_cost_nothing_more():
    latent = found(early_stop=1e9)
    assert torch.equal(latent.null["label"], torch.zeros(5, 6))
    assert latent.nfe.tolist() == [12] * 5  # one evaluation a step to encode, one to see that all is well
    some = found(early_stop=1e-3)
    assert some.nfe.max() > some.nfe.min()
    assert some.nfe.max() <= 6 + 6 * 11
    still = some.null["label"].diff(dim=1, prepend=torch.zeros(5, 1)) == 0
    assert still.any()
    assert not still.all()


def test_more_inner_steps_and_none_beyond_what_is_allowed():
    short, long = (found(inner_steps=k, early_stop=0.0) for k in (1, 25))
    assert short.nfe.tolist() == [6 + 6 * 2] * 5
    assert long.nfe.tolist() == [6 + 6 * 26] * 5
    errors = [rmse(ods.decode(SHIFTED, z).x, POINTS).mean() for z in (short, long)]
    assert errors[1] < 0.5 * errors[0]
    first = short.null["label"][:, 0].abs()  # Adam's first step is the learning rate, whatever the slope
    assert torch.allclose(first, torch.full((5,), 0.05), rtol=1e-3)
    last = short.null["label"].diff(dim=1)[:, -1].abs()
    assert torch.allclose(last, torch.full((5,), 0.05 * (1 - 5 / 12)), rtol=1e-3)


def test_a_latent_keeps_its_null_conditions(tmp_path):
    latent = found(solver="heun")
    whole = ods.decode(SHIFTED, latent).x
    latent.save(tmp_path / "z.safetensors")
    loaded = ods.Latent.load(tmp_path / "z.safetensors")
    assert torch.equal(ods.decode(SHIFTED, loaded).x, whole)
    assert torch.allclose(ods.decode(SHIFTED, latent.select([3, 1]), max_batch=2).x, whole[[3, 1]], atol=1e-12)
    assert "null=['label']" in repr(latent)
    assert latent.without_null().null is None
    assert not torch.allclose(ods.decode(SHIFTED, latent.without_null()).x, whole, atol=1e-2)


def test_where_sigma_is_infinite_the_step_out_of_it_is_searched_too():
    def network(x_t, t, label):
        return mixture().model(ods.RectifiedFlow(), "flow").network(x_t, t) + 0.3 * label[:, None]

    flow = ods.Model(network, ods.RectifiedFlow(), "flow", null_cond={"label": 0.0})
    latent = found(flow, inner_steps=30, grid=None)
    assert latent.recipe.sigmas[0] == float("inf")
    assert (latent.null["label"][:, 0] != 0).any()
    errors = [rmse(ods.decode(flow, z).x, POINTS).mean() for z in (latent, latent.without_null())]
    assert errors[0] < 0.6 * errors[1]


def test_steps_outside_the_guidance_interval_leave_the_null_condition_as_it_is():
    latent = found(guidance_scale=ods.Guidance(3.0, interval=(0.5, 1.5)), early_stop=0.0)
    sigmas = torch.tensor(latent.recipe.sigmas[:-1])
    moved = latent.null["label"].diff(dim=1, prepend=torch.zeros(5, 1)).abs().amax(0) > 0
    inside = (sigmas >= 0.5) & (sigmas <= 1.5)
    assert torch.equal(moved, inside)
    assert latent.nfe.tolist() == [6 + int((~inside).sum()) + 11 * int(inside.sum())] * 5


def test_null_conditions_are_searched_in_float32_at_least_and_given_in_their_own_dtype():
    seen = set()

    def network(x_t, t, label):
        seen.add(label.dtype)
        return mixture()(x_t, t) + label[:, None]

    null = torch.zeros((), dtype=torch.bfloat16)
    half = ods.Model(network, ods.VE(), sigma_min=0.2, sigma_max=3.0, null_cond={"label": null})
    latent = found(half, cond={"label": LABELS["label"].bfloat16()})
    ods.decode(half, latent)
    assert latent.null["label"].dtype == torch.float32
    assert seen == {torch.bfloat16}


def test_gradients_flow_to_null_conditions():
    latent = found(solver="heun")
    latent.null["label"].requires_grad_()
    slopes = [
        torch.autograd.grad(ods.decode(SHIFTED, latent, grad=how).x.square().sum(), latent.null["label"])[0]
        for how in ("plain", "checkpointed")
    ]
    assert slopes[0].abs().min() > 0
    assert torch.allclose(slopes[1], slopes[0], rtol=1e-6, atol=0)


def test_progress_is_shown_when_asked(capsys):
    found(progress=True)
    assert "null-text" in capsys.readouterr().err
    found()
    assert capsys.readouterr().err == ""


def never(x_t, t, **cond):
    raise AssertionError("the model was called")


NEVER = ods.Model(never, ods.VE(), sigma_min=0.2, sigma_max=3.0, null_cond={"label": 0.0})
TWO = replace(NEVER, null_cond={"label": 0.0, "text": torch.zeros(3)})
BAD = [
    (NEVER, {"guidance_scale": 1}, "nothing to optimise: use ods.encode"),
    (replace(NEVER, null_cond={}), {"cond": None}, "null condition"),
    (replace(NEVER, null_cond={"label": 10}), {}, r"has label \(int64\).*embedded=True"),
    (replace(NEVER, null_cond={"label": 10, "text": torch.zeros(3)}), {"key": "label"}, r"label \(int64\)"),
    (TWO, {}, "key must be one of the conditions label, text"),
    (TWO, {"key": "txt"}, "key must be one of the conditions label, text"),
    (NEVER, {"solver": "ddpm"}, "deterministic one-step solver"),
    (NEVER, {"solver": "multistep"}, "deterministic one-step solver"),
    (NEVER, {"solver": "reversible"}, "deterministic one-step solver"),
    (NEVER, {"solver": "adaptive:dopri5"}, "chooses its own steps"),
    (NEVER, {"solver": "torchdiffeq:rk4"}, "another library"),
    (NEVER, {"inner_steps": 0}, "inner_steps must be"),
    (NEVER, {"learning_rate": 0.0}, "learning_rate must be"),
    (NEVER, {"early_stop": float("nan")}, "early_stop must be"),
    (NEVER, {"cond": {"lable": 0.0}}, "takes the conditions label"),
    (NEVER, {"grid": [3.0, 1.0, 0.2], "num_steps": 3}, "has 2 transitions"),
    (NEVER, {"max_batch": 1}, "max_batch must be 2 or more"),
    (NEVER, {"max_batch": 2.5}, "max_batch must be a whole number"),
    (NEVER, {"max_batch": "auto"}, "max_batch must be a number here"),
]


@pytest.mark.parametrize(("model", "options", "message"), BAD, ids=[f"{o} {m[:20]}" for _, o, m in BAD])
def test_bad_requests_are_refused_before_the_model_is_called(model, options, message):
    with pytest.raises(ValueError, match=message):
        ods.null_text(model, POINTS, **{"cond": {"label": 0.3}, **QUICK, **options})


def test_images_far_outside_the_data_range_are_refused_as_by_encode():
    model, images, cond = digits(2)
    with pytest.raises(ValueError, match="far outside"):
        ods.null_text(model, 127 * images, cond=cond, guidance_scale=3.0)


def test_a_network_that_null_conditions_cannot_reach_is_refused():
    for network in (
        torch.no_grad()(SHIFTED.network),
        lambda x_t, t, label: mixture()(x_t, t) + label.detach()[:, None],
    ):
        with pytest.raises(ValueError, match="does not depend on its null condition 'label'"):
            found(replace(SHIFTED, network=network))


def test_null_conditions_of_another_shape_or_name_are_refused():
    latent = found()
    for null in ({"text": latent.null["label"]}, {"label": latent.null["label"][:, :3]}):
        with pytest.raises(ValueError, match=r"each \(batch, steps, \.\.\.\)"):
            ods.decode(SHIFTED, replace(latent, null=null))


def test_an_embedded_model_is_the_same_function_of_embeddings():
    for name in ("digits", "emoji"):
        usual, embedded = ods.load(name), ods.load(name, embedded=True)
        labels = torch.tensor([0, 3])
        options = {"guidance_scale": 2.0, "num_steps": 2, "solver": "ddim"}
        by_label = ods.sample(usual, 2, cond={"label": labels}, **options).x
        cond = {"embedding": embedded.network.embed(labels)}
        assert torch.equal(ods.sample(embedded, 2, cond=cond, **options).x, by_label)
        assert torch.equal(ods.sample(embedded, 2, num_steps=2).x, ods.sample(usual, 2, num_steps=2).x)
    with pytest.raises(ValueError, match="give a label, or an embedding"):
        ods.sample(embedded, 2, cond={"embedding": labels}, num_steps=2)
    with pytest.raises(ValueError, match="takes the conditions embedding; got 'label'"):
        ods.sample(embedded, 2, cond={"label": 3})


def test_what_a_fitted_latent_is_compared_with_is_the_unguided_equation_that_encoded_it():
    latent = found(num_steps=40)
    plain = ods.encode(SHIFTED, POINTS, solver="ddim", grid=latent.recipe.sigmas, cond=LABELS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the median latent error", UserWarning)
        fitted, usual = (ods.diagnose(SHIFTED, one, POINTS).error.rmse for one in (latent, plain))
    assert torch.allclose(fitted, usual, rtol=1e-6)


def test_a_fitted_latent_is_not_polished_and_lends_its_null_conditions_to_its_half_of_the_way():
    latent = found()
    with pytest.raises(ValueError, match=r"polish latent\.without_null"):
        ods.polish(SHIFTED, POINTS, latent)
    path = ods.interpolate(latent.select([0]), latent.select([1]), 3)
    assert torch.equal(path.null["label"][[0, 2]], latent.null["label"][:2])
    assert torch.allclose(ods.decode(SHIFTED, path).x[0], ods.decode(SHIFTED, latent.select([0])).x[0], atol=1e-6)


def test_a_fitted_latent_says_how_far_from_its_images_it_ends():
    latent = found()
    missed = (ods.decode(SHIFTED, latent).x - POINTS).abs().flatten(1).amax(1)
    assert torch.allclose(latent.defect.double(), missed.double(), rtol=1e-3, atol=1e-6)
    assert f"defect {missed.max():.1e}" in repr(latent)
