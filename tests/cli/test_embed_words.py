"""`stemma embed` of an ELMo, in this process but through the real entry point."""

import json
import sys

import h5py
import numpy as np
import pytest
import torch

from stemma.families import load, save
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.inference import word_files
from stemma.inference.word_states import WordStates, embed_sentences

LINES = ["the lazy dog", "fox", "the  lazy dog", "the lazy dog", "a naïve fox"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    config = ELMoConfig(characters=4, filters=((1, 6), (2, 6)), highways=1, longest_word=9, projection=8, cell=12)
    path = tmp_path_factory.mktemp("models") / "small"
    save(ELMo(config), None, path)
    return path


@pytest.fixture
def run(monkeypatch, stemma, directory, tmp_path):
    """run(*arguments) -> (exit code, standard output, standard error), in a folder with a.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(LINES) + "\n")

    def call(*arguments: str) -> tuple[int, str, str]:
        return stemma("embed", directory, "a.txt", *arguments)

    return call


def expected(directory):
    return WordStates(load(directory))([line.split() for line in LINES])


def test_hdf5_in_the_published_layout(run, directory, tmp_path):
    code, out, _ = run("--out", "v.hdf5")
    assert (code, out) == (0, "v.hdf5: 13 words of 5 texts, vectors of 16\n")
    with h5py.File(tmp_path / "v.hdf5") as file:
        assert set(file) == {"0", "1", "2", "3", "4", "sentence_to_index"}
        for number, layers in enumerate(expected(directory)):
            assert file[str(number)].dtype == np.float32
            np.testing.assert_allclose(file[str(number)][...], layers, rtol=0, atol=1e-6)
        numbers = json.loads(file["sentence_to_index"][0])
    assert numbers == {"the lazy dog": "3", "fox": "1", "the  lazy dog": "2", "a naïve fox": "4"}
    code, out, _ = run("--out", "w.h5", "--layers", "2", "--json")
    assert json.loads(out) == {"out": "w.h5", "texts": 5, "words": 13, "hidden": 16}
    with h5py.File(tmp_path / "w.h5") as file:
        np.testing.assert_allclose(file["4"][...], expected(directory)[4][2], rtol=0, atol=1e-6)


def test_parquet_has_a_row_a_text(run, directory, tmp_path, monkeypatch):
    import pyarrow.parquet as parquet

    monkeypatch.setattr(word_files, "ROW_GROUP", 2)
    assert run("--out", "v.parquet")[0] == 0
    assert run("--out", "w.parquet", "--layers", "average")[0] == 0
    all_layers, average = (parquet.read_table(tmp_path / name) for name in ("v.parquet", "w.parquet"))
    assert all_layers.column_names == ["text", "layer_0", "layer_1", "layer_2"]
    assert average.column_names == ["text", "embedding"] and average["text"].to_pylist() == LINES
    for number, layers in enumerate(expected(directory)):
        for k in range(3):
            found = np.array(all_layers[f"layer_{k}"][number].as_py())
            np.testing.assert_allclose(found, layers[k], rtol=0, atol=1e-6)
        found = np.array(average["embedding"][number].as_py())
        np.testing.assert_allclose(found, layers.mean(0), rtol=0, atol=1e-6)


def test_one_vector_a_text(run, directory, tmp_path):
    import pyarrow.parquet as parquet

    sentences = [line.split() for line in LINES]
    code, out, _ = run("--out", "v.npy", "--layers", "1", "--normalize")
    assert (code, out) == (0, "v.npy: 5 vectors of 16\n")
    wanted = embed_sentences(load(directory), sentences, wanted=1, normalize=True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), wanted, rtol=0, atol=1e-6)
    assert run("--out", "v.parquet", "--pooling", "max")[0] == 0
    wanted = embed_sentences(load(directory), sentences, pooling="max")
    table = parquet.read_table(tmp_path / "v.parquet")
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, rtol=0, atol=1e-6)


def test_states_are_carried_on_from_text_to_text(run, directory, tmp_path):
    import pyarrow.parquet as parquet

    assert run("--out", "v.parquet", "--stateful", "--layers", "2")[0] == 0
    found = parquet.read_table(tmp_path / "v.parquet")["embedding"]
    states = WordStates(load(directory), stateful=True)
    for number, line in enumerate(LINES):
        np.testing.assert_allclose(found[number].as_py(), states([line.split()])[0][2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "v.csv"), "--out v.csv: expected a name that ends in .npy, .parquet or .hdf5"),
        (("--out", "v.hdf5", "--pooling", "mean"), "--pooling: .hdf5 holds vectors of words"),
        (("--out", "v.parquet", "--normalize"), "--normalize: v.parquet gets vectors of words as they are"),
        (("--out", "v.parquet", "--layers", "9"), "layers: '9', expected all, average or a number from 0 to 2"),
        (("--out", "v.npy", "--layers", "all"), "layers: 'all', expected average or a number from 0 to 2"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("v.*"))


def test_hdf5_without_h5py_is_said_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    code, _, err = run("--out", "v.hdf5")
    assert code == 2 and "pip install 'stemma-lm[elmo]'" in err
