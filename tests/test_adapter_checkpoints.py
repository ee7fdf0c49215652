"""Weights from files: which set is taken, what is refused, and that no file runs code."""

import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import odesampler as ods
from odesampler.adapters.checkpoints import Loaded, Weights, into, load_weights


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weights(seed=0, prefix=""):
    return {prefix + name: tensor.clone() for name, tensor in network(seed).state_dict().items()}


def same(found, seed):
    expected = weights(seed)
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def saved(path, what):
    torch.save(what, path)
    return path


@pytest.mark.parametrize(
    ("held", "where"),
    [
        ({"model": weights(1), "ema": {"decay": 0.9, "shadow": weights(2)}}, "'ema'"),
        ({"model": weights(1), "ema": {"decay": 0.9, "shadow_params": [*weights(2).values()]}}, "'ema'"),
        ({"model": weights(1), "ema_rate_0.9999": weights(2)}, "'ema_rate_0.9999'"),
        ({"state_dict": {**weights(1, "model."), "model_ema.0weight": torch.ones(2)}}, "'state_dict/model_ema.*'"),
    ],
    ids=["shadow", "list", "rate", "latent-diffusion"],
)
def test_raw_weights_are_not_taken_silently_where_averages_are_in_a_form_that_is_not_known(tmp_path, held, where):
    path, raw = saved(tmp_path / "m.pt", held), next(iter(held))
    with pytest.raises(ValueError, match=f"holds averages under {re.escape(where)}.*key='{raw}' for the raw"):
        load_weights(path)
    assert load_weights(path, key=raw)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT", ".safetensors"])
def test_weights_are_read_from_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(weights(1), path) if suffix == ".safetensors" else torch.save(weights(1), path)
    found = load_weights(str(path))
    assert same(found, 1)
    assert found.key == ""
    assert str(found) == f"Weights({len(weights())} tensors)"


LAYOUTS = {  # what a file holds, which set is meant, under which key, beside which others
    "lightning": ({"epoch": 3, "state_dict": weights(1), "optimizer_states": [{}]}, 1, "state_dict", ()),
    "guided-diffusion": (weights(1), 1, "", ()),
    "ema beside model": ({"model": weights(1), "ema": weights(2), "opt": {"lr": 1e-4}}, 2, "ema", ("model",)),
    "k-diffusion": ({"model": weights(1), "model_ema": weights(2), "epoch": 1}, 2, "model_ema", ("model",)),
    "basicsr": ({"params": weights(1), "params_ema": weights(2)}, 2, "params_ema", ("params",)),
    "ema within": ({"model": {"net": weights(1), "ema": weights(2)}}, 2, "model/ema", ("model/net",)),
    "within ema": ({"ema": {"decay": 0.9, "model": weights(2)}, "model": weights(1)}, 2, "ema/model", ("model",)),
    "optimizer beside": (
        {"net": weights(1), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}},
        1,
        "net",
        (),
    ),
    "an empty ema": ({"model": weights(1), "ema": {}}, 1, "model", ()),
    "no ema": ({"model": weights(1), "ema": None, "step": torch.tensor(5)}, 1, "model", ()),
}


@pytest.mark.parametrize(("held", "seed", "key", "others"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_set_that_is_meant_is_taken_and_said(tmp_path, held, seed, key, others):
    path = saved(tmp_path / "model.pt", held)
    found = load_weights(path)
    assert same(found, seed)
    assert (found.key, found.others) == (key, others)
    if key:
        assert f"from {key!r}" in str(found)
        assert same(load_weights(path, key=key), seed)
    done = network()
    assert into(done, path) == Loaded(key, (), (), ())
    assert same(done.state_dict(), seed)


@pytest.mark.parametrize(
    ("held", "keys"),
    [
        ({"ema": weights(1), "params_ema": weights(2)}, ("ema", "params_ema")),
        ({"model": weights(1), "net": weights(2), "state": 1}, ("model", "net")),
        ({"ema": {"model": weights(1), "net": weights(2)}}, ("ema/model", "ema/net")),
    ],
)
def test_several_sets_are_ambiguous_until_one_is_named(tmp_path, held, keys):
    path = saved(tmp_path / "model.pt", held)
    with pytest.raises(ValueError, match=r"several sets of weights: give key=") as error:
        load_weights(path)
    assert all(repr(key) in str(error.value) for key in keys)
    assert [same(load_weights(path, key=key), seed) for seed, key in enumerate(keys, 1)] == [True, True]


def test_a_key_that_is_not_known_is_asked_for_and_one_that_is_not_there_refused(tmp_path):
    path = saved(tmp_path / "model.pt", {"generator": weights(1), "epoch": 3})
    with pytest.raises(ValueError, match="'generator', 'epoch'"):
        load_weights(path)
    assert same(load_weights(path, key="generator"), 1)
    for key in ("ema", "generator/ema", "epoch/1"):
        with pytest.raises(ValueError, match=f"has no key '{key}'"):
            load_weights(path, key=key)
    with pytest.raises(ValueError, match="no set of named tensors"):
        load_weights(path, key="epoch")


@pytest.mark.parametrize("held", [[weights(1)], torch.zeros(3), {}, {"model": {}}, 3, {0: torch.zeros(2)}], ids=str)
def test_a_file_without_weights_is_refused(tmp_path, held):
    with pytest.raises(ValueError, match="no weights under a known key"):
        load_weights(saved(tmp_path / "model.pt", held))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_what_wrappers_put_before_names_is_dropped(tmp_path, prefix):
    assert same(load_weights(saved(tmp_path / "model.pt", {"state_dict": weights(1, prefix)})), 1)


def test_a_module_that_is_called_so_keeps_its_name_and_averages_lose_their_count(tmp_path):
    mixed = {"module.weight": torch.ones(2), "bias": torch.ones(2)}
    assert load_weights(saved(tmp_path / "a.pt", mixed)).keys() == mixed.keys()
    averaged = torch.optim.swa_utils.AveragedModel(network(1))
    assert same(load_weights(saved(tmp_path / "b.pt", averaged.state_dict())), 1)
    compiled = {"inner._orig_mod.weight": torch.ones(2)}
    assert load_weights(saved(tmp_path / "c.pt", compiled)).keys() == {"inner.weight"}
    with pytest.raises(ValueError, match="'a' is there twice"):
        load_weights(saved(tmp_path / "d.pt", {"_orig_mod.a": torch.ones(2), "a": torch.ones(2)}))


def test_a_part_of_a_pipeline_is_taken_by_its_prefix(tmp_path):
    path = saved(tmp_path / "sd.ckpt", {"state_dict": {**weights(1, "model.unet."), **weights(2, "vae.")}})
    assert same(load_weights(path, prefix="model.unet."), 1)
    with pytest.raises(ValueError, match=r"no name begins with prefix='unet\.'; names are such as model\.unet"):
        load_weights(path, prefix="unet.")
    done = network()
    with pytest.raises(ValueError, match=re.escape("give prefix='model.unet.' or 'vae.'")):
        into(done, path)
    partly = {f"vae.{name}": tensor for name, tensor in weights().items() if name != "2.bias"}
    with pytest.raises(ValueError, match=r"Nothing was loaded\.$"):
        into(done, partly)
    into(done, path, prefix="vae.")
    assert same(done.state_dict(), 2)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_file_runs_code(tmp_path):
    blown = tmp_path / "blown"
    for suffix in (".pt", ".pth", ".ckpt", ".bin"):
        path = saved(tmp_path / f"evil{suffix}", {"state_dict": weights(), "hyper_parameters": Bomb(blown)})
        with pytest.raises(ValueError, match=r"asks for \w+\.mkdir") as error:
            load_weights(path)
        assert "could run code" in str(error.value)
        assert "weights_only" not in str(error.value), "nobody is told how to run it"
        (tmp_path / f"bare{suffix}").write_bytes(pickle.dumps(Bomb(blown)))
        with pytest.raises(ValueError, match="cannot be read"):
            load_weights(tmp_path / f"bare{suffix}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(saved(tmp_path / "whole.pt", network()))  # the module itself: its class would be imported
    for name in ("edm.pkl", "edm.pickle", "weights", "model.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(blown)))
        with pytest.raises(ValueError, match="runs code of its own"):
            load_weights(tmp_path / name)
    assert not blown.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert blown.exists(), "the bomb is one"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "text"])
def test_damaged_files_are_refused_by_name(tmp_path, suffix, damage):
    path = tmp_path / f"model{suffix}"
    save_file(weights(1), path) if suffix == ".safetensors" else torch.save(weights(1), path)
    whole = path.read_bytes()
    made = {
        "empty": b"",
        "garbage": bytes(range(256)) * 8,
        "cut": whole[: len(whole) // 2],
        "text": b"<html>404</html>",
    }
    path.write_bytes(made[damage])
    with pytest.raises(ValueError, match=f"model{suffix}"):
        load_weights(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            load_weights(path)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path):
    held = weights(1)
    held["0.weight"] = torch.zeros(4, 5)
    held["extra.bias"] = held.pop("2.bias")
    path, done = saved(tmp_path / "model.pt", {"ema": held}), network()
    with pytest.raises(ValueError, match="under 'ema' do not fit Sequential: 7 do") as error:
        into(done, path)
    for part in ("1 missing (2.bias)", "1 unexpected (extra.bias)", "0.weight: (4, 3), in the file (4, 5)"):
        assert part in str(error.value)
    assert same(done.state_dict(), 0)
    assert into(done, path, strict=False) == Loaded(
        "ema", ("2.bias",), ("extra.bias",), ("0.weight: (4, 3), in the file (4, 5)",)
    )
    assert torch.equal(done.state_dict()["2.weight"], held["2.weight"])
    assert torch.equal(done.state_dict()["0.weight"], weights(0)["0.weight"])
    with pytest.raises(ValueError, match="0 do"):
        into(nn.Linear(7, 7), path, strict=False)


def test_a_network_keeps_its_dtype_and_becomes_a_model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in nn.Linear(2, 2).state_dict().items()}, path)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x_t, t):
            return self.layer(x_t)

    net = Net()
    into(net.layer, load_weights(path))
    assert net.layer.weight.dtype == torch.float32
    assert torch.equal(net.layer.weight, load_weights(path)["weight"].float())
    assert ods.sample(ods.Model(net, ods.VP.linear(), data_shape=(2,)), 3, num_steps=3).x.shape == (3, 2)


def test_what_else_into_refuses(tmp_path):
    with pytest.raises(TypeError, match="torch module"):
        into(lambda x: x, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="key choose from a file"):
        into(network(), Weights(weights()), key="ema")
