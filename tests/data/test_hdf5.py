"""HDF5 files: arrays by name, whole or not there."""

import sys

import h5py
import numpy as np
import pytest

from stemma.data.hdf5 import read_hdf5, write_hdf5
from stemma.errors import InputError


def test_what_is_written_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "group/inner/b": np.array([1.5])}
    write_hdf5(tmp_path / "x.hdf5", arrays.items())
    found = read_hdf5(tmp_path / "x.hdf5")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) and found[name].dtype == arrays[name].dtype for name in arrays)


def test_a_text_is_an_array_of_one(tmp_path):
    write_hdf5(tmp_path / "x.hdf5", [("note", "naïve")])
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file["note"].shape == (1,) and file["note"][0].decode() == "naïve"


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def items():
        yield "a", np.zeros(3)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_hdf5(tmp_path / "x.hdf5", items())
    assert not list(tmp_path.iterdir())


def test_what_is_no_hdf5_file_is_said(tmp_path, monkeypatch):
    (tmp_path / "x.hdf5").write_text("words")
    with pytest.raises(InputError, match="x.hdf5: truncated or not an HDF5 file"):
        read_hdf5(tmp_path / "x.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"need h5py: pip install 'stemma-lm\[elmo\]'"):
        read_hdf5(tmp_path / "x.hdf5")
