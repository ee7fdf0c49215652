"""Answers: networks that write each over the one before, or over their question; what is no answer."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import odesampler as ods
from odesampler.model import Model
from odesampler.schedule import VP
from tests.problems import noise

DIGITS = ods.load("digits", dtype=torch.float64)


class OnePlace(nn.Module):
    """Answers in a buffer of its own for each shape, as CUDA graphs and engines do."""

    def __init__(self, network):
        super().__init__()
        self.network, self.places = network, {}

    def forward(self, x_t, t, **cond):
        answer = self.network(x_t, t, **cond)
        place = self.places.setdefault(answer.shape, torch.empty(answer.shape, dtype=answer.dtype))
        return place.copy_(answer).detach()  # another tensor each time, at the same place


@pytest.mark.parametrize(
    "how",
    [
        {"solver": "ddim", "max_batch": 2},
        {"solver": "ddim", "max_batch": 3},  # chunks of 3 and 1, so of two shapes by turns
        {"solver": "heun"},
        {"solver": "dpmpp_2m"},
        {"solver": "dopri5", "rtol": 1e-2},
        {"solver": "heun", "guidance_scale": 2.0, "max_batch": 4},
    ],
    ids=repr,
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_that_answers_in_one_place_draws_what_it_would_draw_otherwise(how, channels_last):
    how = {"cond": {"label": 1}, "state_dtype": torch.float64, **({} if "rtol" in how else {"num_steps": 5}), **how}
    plain = replace(ods.load("digits", dtype=torch.float64), channels_last=channels_last)
    model = replace(plain, network=OnePlace(plain.network))
    for seed in (1, 2):
        assert torch.equal(ods.sample(model, 4, seed=seed, **how).x, ods.sample(plain, 4, seed=seed, **how).x)


def test_it_is_so_between_the_pieces_of_a_fused_solve_too(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    how = {"solver": "heun", "num_steps": 3, "state_dtype": torch.float64}
    draw = ods.capture(replace(DIGITS, network=OnePlace(DIGITS.network)), 2, fuse=True, **how)
    assert torch.equal(draw(seed=3).x, ods.sample(DIGITS, 2, seed=3, **how).x)


class Copies(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += func.overloadpacket.__name__ in ("clone", "_to_copy")
        return func(*args, **(kwargs or {}))


def copies_of(model, *batches):
    """How many copies each of some questions makes."""
    counts = []
    for batch in batches:
        with Copies() as copies:
            model(noise(batch), 1.5)
        counts.append(copies.found)
    return counts


def test_other_answers_are_copied_once_for_each_shape():
    model = Model(lambda x_t, t: x_t.neg(), VP.linear())
    assert copies_of(model, 6, 6, 6, 6) == [1, 0, 0, 0]
    assert copies_of(model, 4, 2, 4, 2, 4, 2, 6) == [1, 1, 0, 0, 0, 0, 0]
    assert not model.answers.first, "nothing is kept"


def test_of_many_shapes_few_answers_are_kept():
    """As adaptive steps have them, whose samples leave one by one."""
    model = Model(lambda x_t, t: x_t.neg(), VP.linear())
    copies_of(model, *range(1, 40))
    assert len(model.answers.first) <= 4


class Raced(dict):
    """What one thread has seen here is gone when it takes it: another was faster."""

    def pop(self, key, *default):
        super().pop(key, None)
        return super().pop(key, *default)


def test_threads_may_ask_one_model_about_many_shapes():
    model = Model(lambda x_t, t: x_t.neg(), VP.linear())
    model.answers.first = Raced()
    for batch in (1, 1, *range(2, 9), 8):
        x = noise(batch)
        torch.testing.assert_close(model(x, 1.0), -x / 2**0.5)
    assert not model.answers.same


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_find_out_for_themselves(copied):
    """In the middle, when one answer has been kept to compare the next with."""
    model = replace(DIGITS, network=OnePlace(DIGITS.network))
    how = {"solver": "rk4", "num_steps": 3, "state_dtype": torch.float64}
    ods.sample(model, 4, solver="ddim", num_steps=1)
    other = replace(copied(model), network=copied(model).network)
    for each in (copied(model), other, model):
        assert torch.equal(ods.sample(each, 4, **how).x, ods.sample(DIGITS, 4, **how).x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # which torch.func.jvp imports
def test_torch_func_and_tensors_without_memory_pass():
    model, x = Model(lambda x_t, t: x_t.sin(), VP.linear()), noise(4)
    each = torch.func.vmap(lambda one: model(one[None], 1.5)[0])(x)
    torch.testing.assert_close(each, model(x, 1.5))
    [push] = torch.func.jvp(lambda x: model(x, 1.5), (x,), (x,))[1:]
    assert push.shape == x.shape
    hollow = Model(lambda x_t, t: x_t.sin(), VP.linear())
    for _ in range(3):
        assert hollow(x.to("meta"), 1.5).is_meta
    assert not hollow.answers.fresh


@pytest.mark.parametrize("prediction", ["eps", "v", "denoised", "flow"])
def test_a_network_that_changes_its_question_is_refused_where_that_is_read_again(prediction):
    def spoils(x_t, t):
        answer = x_t * 0.3
        x_t.mul_(0.5)
        return answer

    made = [Model(network, VP.linear(), prediction, name="net") for network in (spoils, lambda x_t, t: x_t * 0.3)]
    with torch.inference_mode():
        x = noise()  # whose changes torch does not count
    if prediction == "eps":
        assert torch.equal(made[0](noise(), 1.5), made[1](noise(), 1.5))
    else:
        with pytest.raises(ValueError, match="net changed its question x_t in place: let the network work on a copy"):
            made[0](noise(), 1.5)
        made[1](noise(), 1.5)
    with torch.inference_mode():
        made[1](x, 1.5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_an_answer_that_is_no_floating_point_number_is_refused(dtype):
    model = Model(lambda x_t, t: x_t.to(dtype), VP.linear(), name="net")
    with pytest.raises(TypeError, match=f"net answered with {dtype}; a network must answer with a tensor of floats"):
        model(noise(), 1.5)
