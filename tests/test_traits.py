"""Traits: what tells one network from another, and what does not."""

import subprocess
import sys
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import nn

import odesampler as ods


def print_of(network):
    return ods.Model(network, ods.VP.linear()).fingerprint()


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


NET = linear(0)


def around(net):
    return lambda x_t, t: net(x_t)


def twice_around(net):
    inner = around(net)
    return lambda x_t, t: inner(x_t, t)


def asking(owner):
    return lambda x_t, t: owner.ask(x_t, t)


class Method:
    def __init__(self, net):
        self.net, self.calls = net, 0

    def ask(self, x_t, t):
        return self.net(x_t)


class Callable(Method):
    def __call__(self, x_t, t):
        self.calls += 1
        self.table = t
        return self.net(x_t)


def named(x_t, t):
    return inner(x_t)


def inner(x):
    return NET(x)


def plain(x_t, t, by=1.0):
    return x_t * by


MAKES = [
    around,
    twice_around,
    lambda net: around(net.forward),
    lambda net: around(partial(net)),
    lambda net: around(Callable(net)),
    lambda net: around([[net]]),
    lambda net: around({"net": net}),
    lambda net: asking(Method(net)),
    lambda net: Method(net).ask,
    lambda net: Method(around(net)).ask,
    lambda net: Callable(around(net)),
    lambda net: Callable(net.forward),
    lambda net: Callable(partial(net)),
    lambda net: torch.no_grad()(around(net)),
    lambda net: lru_cache(around(net)),
    lambda net: torch.compile(around(net), backend="eager"),
    Callable,
    partial,
]


@pytest.mark.parametrize("make", MAKES)
def test_a_network_is_known_by_the_modules_that_it_asks(make):
    assert print_of(make(linear(0))) == print_of(make(linear(0)))
    assert print_of(make(linear(0))) != print_of(make(linear(1)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x_t, t: x_t.sin(), lambda x_t, t: x_t.cos()),
        (lambda x_t, t: [y.sin() for y in x_t], lambda x_t, t: [y.cos() for y in x_t]),
        (partial(plain, by=0.5), partial(plain, by=0.25)),
        (partial(plain, by=torch.float32), partial(plain, by=torch.float64)),
    ],
)
def test_a_network_is_known_by_its_code_and_arguments(one, other):
    assert print_of(one) != print_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(plain, a=1, b=2), partial(plain, b=2, a=1)),
        (partial(plain, by=2), partial(plain, by=2.0)),
        (partial(plain, by=2), partial(plain, by=np.float32(2))),
    ],
)
def test_one_network_has_one_fingerprint_however_it_is_written(one, other):
    assert print_of(one) == print_of(other)


def test_what_a_function_names_in_its_file_belongs_to_it(monkeypatch):
    before = print_of(named)
    assert print_of(named) == before
    monkeypatch.setitem(globals(), "NET", linear(1))
    assert print_of(named) != before


def counting(x_t, t, calls=[0], *, cache={}):  # noqa: B006
    calls[0] += 1
    cache[x_t.shape] = x_t
    return x_t


class Engine:
    """Which refers to itself, and whose parts refer to it."""

    def __init__(self, net):
        self.me, self.head, self.net = self, Head(self), net

    def __call__(self, x_t, t):
        return self.head(x_t)


class Head:
    def __init__(self, owner):
        self.owner = owner

    def __call__(self, x_t):
        return self.owner.net(x_t)


@pytest.mark.parametrize(
    "network",
    [
        counting,
        partial(counting, calls=[0], cache={}),
        partial(lambda x_t, t, out: out.copy_(x_t), out=torch.zeros(2, 2)),
        torch.compile(around(linear(0)), backend="eager"),
        Engine(linear(0)),
    ],
)
def test_a_network_that_is_asked_stays_the_one_that_it_is(network):
    before = print_of(network)
    for _ in range(2):
        network(torch.ones(2, 2), 1)
        assert print_of(network) == before


def test_buffers_caches_counters_logs_and_what_is_not_there_do_not():
    """Nor do they in what a function names."""

    def network(x_t, t):
        nonlocal calls, table
        calls += 1
        seen.append(calls)
        table = table if table.shape == x_t.shape else x_t.clone()
        place.copy_(x_t)
        return place if verbose else gone(x_t)  # noqa: F821

    calls, seen, verbose, gone, table, place = 0, [], True, None, torch.zeros(1), torch.zeros(2, 2)
    del gone
    asked = Callable(linear(0))
    before = print_of(network), print_of(asked)
    for each in (network, asked):
        each(torch.ones(2, 2), 1)
    assert (calls, asked.calls) == (1, 1)
    assert (print_of(network), print_of(asked)) == before


def test_a_latent_of_a_network_with_a_buffer_of_its_own_is_decoded():
    def network(x_t, t):
        return place.copy_(net(x_t) * 0.1)

    place, net = torch.zeros(4, 2, dtype=torch.float64), linear(0).double()
    model = ods.Model(network, ods.VP.linear(), data_shape=(2,))
    images = torch.ones(4, 2, dtype=torch.float64)
    latent = ods.encode(model, images, num_steps=5)
    torch.testing.assert_close(ods.decode(model, latent).x, images, rtol=0, atol=1e-4)


def test_functions_that_name_themselves_and_each_other_are_read_once():
    reads = []

    class Counted(nn.Module):
        def state_dict(self, *args, **kwargs):
            reads.append(1)
            return super().state_dict(*args, **kwargs)

    def first(x_t, t):
        return second(x_t, t), third(x_t, t), net(x_t)

    def second(x_t, t):
        return first(x_t, t), third(x_t, t), net(x_t)

    def third(x_t, t):
        return first(x_t, t), second(x_t, t), net(x_t)

    net = Counted()
    assert len({print_of(each) for each in (first, second, third)}) == 3
    assert len(reads) == 3


def test_the_models_in_the_package_keep_the_fingerprints_that_latents_know_them_by():
    assert ods.load("digits").fingerprint() == "2a8eda0793398044"
    assert ods.load("emoji").fingerprint() == "8d13871a88018c07"


def test_a_set_in_the_code_is_the_same_in_every_process():
    """Words lie in sets in an order of the process's own."""
    code = "from tests.test_traits import picked, print_of; print(print_of(picked))"
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


def picked(x_t, t):
    return x_t if t in {"a", "b", "c"} else t


def guided_diffusion(**options):
    return ods.adapters.guided_diffusion.from_network(linear(0), data_shape=(2,), **{"num_classes": 4, **options})


def edm(**options):
    return ods.adapters.edm.from_raw(linear(0), data_shape=(2,), **options)


def edm_net(**options):
    return ods.adapters.edm.from_net(linear(0), data_shape=(2,), sigma_min=0.1, sigma_max=10.0, **options)


def kdiffusion(**extra):
    from_denoiser = ods.adapters.kdiffusion.from_denoiser
    return from_denoiser(linear(0), sigma_min=0.1, sigma_max=10.0, data_shape=(2,), extra_args=extra)


def diffusers(**scales):
    from odesampler.adapters.diffusers.networks import Preconditioned
    from odesampler.adapters.diffusers.schedules import Preconditioning

    return ods.Model(Preconditioned(linear(0), Preconditioning(**scales)), ods.VE(), "denoised")


CLASSIFIERS = [linear(1), linear(2)]


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (guided_diffusion, {"classifier": CLASSIFIERS[0]}, {"classifier": CLASSIFIERS[1]}),
        (guided_diffusion, {"classifier": plain, "classifier_scale": 10.0}, {"classifier": plain}),
        (guided_diffusion, {"classifier": plain}, {"classifier": named}),
        (guided_diffusion, {"num_classes": 4}, {"num_classes": 5}),
        (guided_diffusion, {"null_label": 4}, {"null_label": None}),
        (edm_net, {"label_dim": 4}, {"label_dim": 5}),
        (diffusers, {"data": 0.5, "sign": 1.0}, {"data": 0.5, "sign": -1.0}),
        (diffusers, {"data": 0.5, "sign": 1.0}, {"data": 1.0, "sign": 1.0}),
        (edm, {"sigma_data": 0.5}, {"sigma_data": 1.0}),
        (edm, {"kind": "edm"}, {"kind": "iddpm", "sigma_min": 0.002, "sigma_max": 80.0}),
        (kdiffusion, {"strength": 1.0}, {"strength": 0.3}),
        (kdiffusion, {"hint": torch.zeros(2)}, {"hint": torch.ones(2)}),
    ],
)
def test_what_adapters_are_given_belongs_to_their_models(make, one, other):
    same = [make(**one).fingerprint() for _ in range(2)]
    assert same[0] == same[1]
    made = make(**one), make(**other)
    assert (
        made[0].fingerprint() != replace(made[1], sigma_min=made[0].range[0], sigma_max=made[0].range[1]).fingerprint()
    )


def test_a_run_in_shards_goes_on_with_the_same_closure_only(tmp_path):
    def model(seed):
        return ods.Model(around(linear(seed)), ods.VP.linear(), data_shape=(2,))

    how = {"shard_size": 2, "num_steps": 2, "world": 2}
    ods.sample_many(model(0), 4, tmp_path, rank=0, **how)
    with pytest.raises(ValueError, match="holds another run"):
        ods.sample_many(model(1), 4, tmp_path, rank=1, **how)
    assert ods.sample_many(model(0), 4, tmp_path, rank=1, **how).complete
