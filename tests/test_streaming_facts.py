"""What two runs must agree in: all that decides their bits, and nothing else."""

import tracemalloc

import pytest
import torch

import odesampler as ods
from odesampler.inputs import checked_cond
from odesampler.streaming import facts
from odesampler.streaming.facts import fact_of_seeds, hash_of
from tests.counting import Live


def test_the_hash_of_one_value_repeated_does_not_depend_on_how_often_or_how_it_was_said():
    hashes = {
        hash_of(torch.tensor([3])),
        hash_of(torch.tensor([3] * 500)),
        hash_of(torch.tensor(3).expand(77)),
    }
    assert len(hashes) == 1


def test_different_values_types_and_shapes_have_different_hashes():
    values = [
        torch.tensor([3, 3, 4]),
        torch.tensor([3, 4, 3]),
        torch.tensor([3, 3, 4], dtype=torch.int32),
        torch.tensor([3.0, 3.0, 4.0], dtype=torch.bfloat16),
        torch.tensor([[3], [3], [4]]),
        torch.tensor([4]),
        torch.tensor([True, False]),
    ]
    assert len({hash_of(v) for v in values}) == len(values)


def test_a_hash_does_not_depend_on_how_many_values_are_looked_at_together(monkeypatch):
    value = torch.arange(1000.0).reshape(50, 20)
    whole = hash_of(value)
    monkeypatch.setattr(facts, "VALUES", 7)
    assert hash_of(value) == whole
    assert hash_of(value.t().contiguous().t()) == whole


def test_one_value_repeated_a_thousand_million_times_is_hashed_at_once():
    long = torch.zeros(77, 64).expand(10**9, 77, 64)
    tracemalloc.start()
    assert hash_of(long) == hash_of(torch.zeros(1, 77, 64))
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_label_for_a_thousand_million_samples_is_looked_at_once():
    model = ods.load("digits")
    tracemalloc.start()
    with Live() as tensors:
        for cond in ({"label": 3}, None):
            assert len(checked_cond(model, cond, 10**9)["label"]) == 10**9
        with pytest.raises(ValueError, match="label 11 does not exist"):
            checked_cond(model, {"label": 11}, 10**9)
    assert tensors.peak + tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_labels_are_looked_at_where_they_lie():
    model, labels = ods.load("digits"), torch.full((10**6,), 10)  # the null label, among others
    labels[:9] = torch.arange(9)
    tracemalloc.start()
    assert checked_cond(model, {"label": labels}, 10**6)["label"] is labels
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    labels[77_777], labels[88_888] = -3, 11
    with pytest.raises(ValueError, match="label -3 does not exist"):
        checked_cond(model, {"label": labels}, 10**6)


@pytest.mark.parametrize(("seeds", "said"), [(range(5, 9), "from 5"), ([5, 6, 7, 8], "from 5"), ([5], "from 5")])
def test_seeds_in_sequence_are_said_as_the_first(seeds, said):
    assert fact_of_seeds(seeds) == said


def test_other_seeds_are_told_apart():
    assert len({fact_of_seeds(s) for s in ([5, 7], [7, 5], [5, 6], [5, 5])}) == 4
