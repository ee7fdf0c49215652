"""Files of tensors: the same bytes whenever they are written, and what is no such file."""

import io

import pytest
import torch
from safetensors.torch import load_file, save_file

from odesampler.tensor_file import read_tensors, write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(1, dtype=torch.int64).expand(4)}
FACTS = {name: f"of {name}" for name in "zyxwvutsrq"}


def written(metadata):
    file = io.BytesIO()
    write_tensors(file, TENSORS, metadata)
    return file.getvalue()


def test_the_bytes_do_not_depend_on_the_order_in_which_facts_are_given():
    assert written(FACTS) == written(dict(reversed(FACTS.items())))


def test_what_is_written_is_read_back_here_and_by_safetensors(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(written(FACTS))
    found, facts = read_tensors(path)
    assert facts == FACTS
    for read in (found, load_file(path)):
        assert read.keys() == TENSORS.keys()
        assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_a_file_without_facts_has_none(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert read_tensors(tmp_path / "plain.safetensors")[1] == {}


def test_what_is_no_whole_file_of_tensors_is_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(path)
    for data in (b"", b"no tensors", written(FACTS)[:-1]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a safetensors file, or damaged"):
            read_tensors(path)
