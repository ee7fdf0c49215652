"""Traits: what tells one network from another, and what does not."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import odesampler as ods

SCALE = 2.0
WEIGHT = torch.ones(3)


def print_of(network):
    return ods.Model(network, ods.VP.linear()).fingerprint()


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def around(net):
    return lambda x_t, t: net(x_t)


def scaled(by):
    def inner(x):
        return x * by

    return lambda x_t, t: inner(x_t)


def picked(letters):
    def network(x_t, t):
        return x_t if "b" in {"a", "b", "c"} else t

    return network


class Method:
    def __init__(self, net, calls=0):
        self.net, self.calls = net, calls

    def __call__(self, x_t, t):
        self.calls += 1
        return self.net(x_t)

    def ask(self, x_t, t):
        return self.net(x_t)


def named(x_t, t):
    return x_t * SCALE + WEIGHT[0]


def plain(x_t, t, by=1.0):
    return x_t * by


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (around(linear(0)), around(linear(0)), around(linear(1))),
        (scaled(0.5), scaled(0.5), scaled(0.25)),
        (scaled(WEIGHT), scaled(torch.ones(3)), scaled(torch.zeros(3))),
        (lambda x_t, t: x_t.sin(), None, lambda x_t, t: x_t.cos()),
        (lambda x_t, t: [y.sin() for y in x_t], None, lambda x_t, t: [y.cos() for y in x_t]),
        (partial(plain, by=0.5), partial(plain, by=0.5), partial(plain, by=0.25)),
        (Method(linear(0)).ask, Method(linear(0)).ask, Method(linear(1)).ask),
        (Method(linear(0)), Method(linear(0), calls=7), Method(linear(1))),
    ],
)
def test_networks_are_told_apart_by_what_they_compute_with(one, same, other):
    assert print_of(one) == print_of(one if same is None else same)
    assert print_of(one) != print_of(other)


@pytest.mark.parametrize(("name", "value"), [("SCALE", 3.0), ("WEIGHT", torch.zeros(3))])
def test_what_a_function_names_in_its_file_belongs_to_it(monkeypatch, name, value):
    before = print_of(named)
    assert print_of(named) == before
    monkeypatch.setitem(globals(), name, value)
    assert print_of(named) != before


def test_counters_logs_and_what_is_not_there_do_not():
    def network(x_t, t):
        nonlocal calls
        calls += 1
        seen.append(calls)
        return x_t if verbose else gone(x_t)  # noqa: F821

    calls, seen, verbose, gone = 0, [], True, None
    del gone
    before = print_of(network)
    network(torch.zeros(1), 0)
    assert (calls, print_of(network)) == (1, before)


def test_functions_that_name_themselves_and_each_other_end():
    def back(x_t, t):
        return forth(x_t, t)

    def forth(x_t, t):
        return back(x_t, t) if t else x_t

    assert print_of(back) == print_of(back)
    assert print_of(back) != print_of(forth)


def test_a_set_in_the_code_is_the_same_in_every_process():
    """Words lie in sets in an order of the process's own."""
    code = "from tests.test_traits import picked, print_of; print(print_of(picked('')))"
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


def guided_diffusion(**options):
    adapter, torch_net = ods.adapters.guided_diffusion, linear(0)
    return adapter.from_network(lambda x_t, t, y=None: torch_net(x_t), data_shape=(2,), num_classes=4, **options)


def edm(**options):
    return ods.adapters.edm.from_raw(linear(0), data_shape=(2,), **options)


def kdiffusion(**extra):
    from_denoiser = ods.adapters.kdiffusion.from_denoiser
    return from_denoiser(linear(0), sigma_min=0.1, sigma_max=10.0, data_shape=(2,), extra_args=extra)


CLASSIFIERS = [linear(1), linear(2)]


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (guided_diffusion, {"classifier": CLASSIFIERS[0]}, {"classifier": CLASSIFIERS[1]}),
        (guided_diffusion, {"classifier": plain, "classifier_scale": 10.0}, {"classifier": plain}),
        (guided_diffusion, {"classifier": plain}, {"classifier": named}),
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
