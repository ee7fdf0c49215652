"""Compiled networks and channels last: the same answers, few compilations, nobody asked about but the samples."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import odesampler as ods
from odesampler.compiled import bucket, compiled, padded
from odesampler.drive import run
from odesampler.guidance import guided
from odesampler.integrate import on_grid
from odesampler.model import Model
from odesampler.schedule import VE, VP
from odesampler.solvers import Heun
from tests.problems import geometric, noise


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


class Counting:
    """A backend for torch.compile that needs no C++ compiler: runs graphs as they are, and counts them."""

    def __init__(self):
        self.compiled, self.ran = 0, []

    def __call__(self, graph, inputs):
        self.compiled += 1

        def call(*args):
            answers = graph.forward(*args)
            self.ran.append(len(answers[0]))
            return answers

        return call


class OnePlace(Counting):
    """A backend that writes its answers to the same place each time, as CUDA graphs do."""

    def __call__(self, graph, inputs):
        call, places = super().__call__(graph, inputs), []

        def into_place(*args):
            answers = call(*args)
            places.extend(torch.empty_like(a) for a in answers[len(places) :])
            return tuple(place.copy_(a) for place, a in zip(places, answers, strict=True))

        return into_place


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out, self.classes = nn.Linear(2, 30), nn.Linear(30, 2), nn.Embedding(4, 30)

    def forward(self, x_t, t, label):
        return self.out((self.layer(x_t) + self.classes(label)).tanh() / t[:, None])


def modelled(compile=False, **how):
    return Model(Net().double(), VE(), null_cond={"label": 3}, data_shape=(2,), compile=compile, **how)


def solved(eps, batch, **how):
    cond = {"label": torch.arange(batch) % 3}
    with torch.no_grad():
        return run(on_grid(Heun(), noise(batch), geometric(2)), model=eps, cond=cond, **how)[0].x


def test_forty_sizes_of_a_batch_are_a_handful_of_compilations_and_the_same_samples():
    backend = Counting()
    model = modelled({"backend": backend})
    for batch in range(1, 41):
        found = solved(model, batch)
        torch.testing.assert_close(found, solved(modelled(), batch), rtol=1e-12, atol=1e-12)
    assert backend.compiled == 7
    assert sorted(set(backend.ran)) == [1, 2, 4, 8, 16, 32, 64]
    assert len(backend.ran) == 40 * 4, "some calls were not compiled"


def test_a_size_is_compiled_once_however_its_conditions_and_images_lie_in_memory():
    """One label for all has stride 0, a list of them 1; adaptive steps pick rows, padding joins some."""
    backend = Counting()
    model = modelled({"backend": backend})
    x = noise(4).T.contiguous().T
    with torch.no_grad():
        for batch in (1, 2, 3, 4):
            ods.sample(model, batch, num_steps=2, cond={"label": 1})
        ods.sample(model, 4, num_steps=2, cond={"label": [1, 2, 1, 1]})
        ods.sample(model, 4, num_steps=2)
        ods.sample(model, x=x, num_steps=2)
        run(on_grid(Heun(), noise(3), geometric(2)), model=model, cond={"label": torch.arange(6)[::2] % 3})
    sizes = {1, 2, 4}
    assert set(backend.ran) == sizes
    assert backend.compiled == len(sizes)


def test_a_condition_may_be_a_number_where_a_model_is_called_by_hand():
    model = Model(lambda x_t, t, by: x_t * by, VE(), compile={"backend": Counting()})
    torch.testing.assert_close(model(noise(2), 1.0, by=2.0), noise(2) * 2)


def test_no_size_is_given_up_where_there_are_many():
    backend = Counting()
    model = modelled({"backend": backend})
    for power in range(12):
        solved(model, 2**power)
    assert backend.compiled == 12
    assert len(backend.ran) == 12 * 4, "torch went back to what is not compiled"


@pytest.mark.parametrize("max_batch", [6, 10])
def test_padding_keeps_to_max_batch_and_guided_rows_share_a_call(max_batch):
    backend = Counting()
    eps = guided(modelled({"backend": backend}), 3.0)
    found = solved(eps, 13, max_batch=max_batch)
    torch.testing.assert_close(found, solved(guided(modelled(), 3.0), 13), rtol=1e-12, atol=1e-12)
    at_once = max_batch // 2
    rest = 2 * bucket(13 % at_once, at_once)
    assert backend.ran == ([max_batch] * (13 // at_once) + [rest]) * 4


def test_memory_that_runs_out_is_met_with_smaller_sizes():
    class Small(Counting):
        def __call__(self, graph, inputs):
            call = super().__call__(graph, inputs)

            def limited(*args):
                answers = call(*args)
                if self.ran[-1] > 9:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
                return answers

            return limited

    backend = Small()
    model = modelled({"backend": backend})
    found = solved(model, 20, max_batch="auto")
    torch.testing.assert_close(found, solved(modelled(), 20), rtol=1e-12, atol=1e-12)
    assert backend.ran[:5] == [32, 16, 8, 8, 4]
    assert max(backend.ran[5:]) == 8


def test_adaptive_samples_and_programs_side_by_side_come_out_as_without():
    def both(model):
        programs = [on_grid(Heun(), noise(3), geometric(3)), on_grid(Heun(), noise(4), geometric(2))]
        conds = [{"label": torch.arange(n) % 3} for n in (3, 4)]
        with torch.no_grad():
            states = run(*programs, model=model, cond=conds)
        drawn = ods.sample(model, 5, rtol=1e-4, atol=1e-4, cond={"label": 1}, state_dtype=torch.float64)
        return torch.cat([*(state.x for state in states), drawn.x]), drawn.nfe

    backend = Counting()
    given = {"sigma_min": 0.1, "sigma_max": 5.0}
    compiled, plain = both(modelled({"backend": backend}, **given)), both(modelled(**given))
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-9, atol=1e-9)
    assert compiled[1].tolist() == plain[1].tolist(), "padding was counted as samples"
    assert set(backend.ran) <= {1, 2, 4, 8}


def test_answers_that_are_all_written_to_one_place_are_not_confused():
    """Heun needs its first answer after its second; two chunks are joined after both."""
    model = modelled({"backend": OnePlace()})
    torch.testing.assert_close(solved(model, 8, max_batch=4), solved(modelled(), 8), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
def test_gradients_are_finite_and_those_of_the_samples_alone():
    def asks_each_at_its_own():
        return (yield noise(5), torch.linspace(0.5, 2.5, 5, dtype=torch.float64))

    def gradient(compile):
        net = Net().double()
        model = Model(net, VE(), null_cond={"label": 3}, compile=compile)
        [eps] = run(asks_each_at_its_own(), model=model)
        eps.square().sum().backward()
        return net.layer.weight.grad

    torch.testing.assert_close(gradient({"backend": Counting()}), gradient(False), rtol=1e-10, atol=1e-12)


def test_a_network_that_divides_by_its_clock_is_never_asked_at_zero():
    filled = padded(torch.tensor([[2.0, 1.0], [3.0, 1.0]]), 4)
    assert filled.tolist() == [[2, 1], [3, 1], [2, 1], [2, 1]]
    assert padded(0.5, 4) == 0.5


def test_a_compiled_model_is_the_same_model():
    plain = ods.load("digits")
    compiled = replace(plain, compile={"backend": Counting()})
    before = plain.fingerprint()
    drawn = ods.sample(compiled, 3, num_steps=2)
    torch.testing.assert_close(drawn.x, ods.sample(plain, 3, num_steps=2).x, rtol=1e-3, atol=1e-3)
    assert compiled.fingerprint() == before
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()
    assert (compiled.device, compiled.network_dtype) == (plain.device, plain.network_dtype)
    images = ods.held_out("digits").images[:3]
    back = ods.decode(plain, ods.encode(compiled, images, num_steps=3))
    torch.testing.assert_close(back.x.float(), images, rtol=0, atol=1e-3)


def test_options_are_passed_on_and_dynamic_sizes_are_not_padded():
    backend = Counting()
    model = modelled({"backend": backend, "dynamic": True})
    for batch in (3, 5, 7, 9):
        solved(model, batch)
    assert set(backend.ran) == {3, 5, 7, 9}
    assert backend.compiled == 1
    with pytest.raises(RuntimeError, match="mode"):
        solved(modelled({"mode": "no such mode"}), 2)


def test_how_often_torch_may_compile_is_64_unless_the_user_says_otherwise(monkeypatch):
    def compile(network, *, dynamic, recompile_limit, **options):
        given.append((dynamic, recompile_limit, options))
        return network

    given = []
    monkeypatch.setattr(torch, "compile", compile)
    for options in (True, {"recompile_limit": 3}, {"dynamic": True, "mode": "default"}):
        compiled(Net(), options)
    assert given == [(False, 64, {}), (False, 3, {}), (True, 64, {"mode": "default"})]


def test_what_is_no_option_is_refused_at_once():
    with pytest.raises(TypeError, match="compile must be True, False, or options"):
        modelled("reduce-overhead")
    with pytest.raises(ValueError, match=r"compile has the options of torch.compile, fullgraph, .*; got 'nonsense'"):
        modelled({"nonsense": 1})


def test_a_batch_of_nobody_is_not_padded():
    assert solved(modelled({"backend": Counting()}), 0).shape == (0, 2)


# Channels last


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.seen = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), []

    def forward(self, x_t, t):
        self.seen.append(x_t.is_contiguous(memory_format=torch.channels_last))
        return self.second(self.first(x_t).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_is_the_networks_affair_alone(dtype):
    def made(**how):
        return Model(Convolutions(), VP.linear(), data_shape=(3, 6, 6), **how)

    plain, last = made(), made(channels_last=True)
    assert last.fingerprint() == plain.fingerprint()
    assert last.network.second.weight.is_contiguous(memory_format=torch.channels_last)
    x = noise(2 * 3 * 18, dtype=dtype).reshape(2, 3, 6, 6)
    eps = last(x, 1.0)
    assert eps.is_contiguous()
    assert eps.dtype == dtype
    torch.testing.assert_close(eps, plain(x, 1.0), rtol=1e-4, atol=1e-4)
    drawn = ods.sample(last, 2, num_steps=3, state_dtype=dtype)
    assert drawn.x.is_contiguous()
    torch.testing.assert_close(drawn.x, ods.sample(plain, 2, num_steps=3, state_dtype=dtype).x, rtol=1e-3, atol=1e-3)
    assert all(last.network.seen)
    assert not any(plain.network.seen)


def test_channels_last_is_for_images():
    with pytest.raises(ValueError, match=r"\(channels, height, width\); got data of \(2,\)"):
        modelled(channels_last=True)


def test_a_network_that_is_no_module_gets_its_images_so_too():
    seen = []
    model = Model(lambda x_t, t: (seen.append(x_t.stride()), x_t)[1], VE(), channels_last=True)
    assert model(torch.zeros(2, 3, 4, 4), 1.0).is_contiguous()
    assert seen == [(48, 1, 12, 3)]
