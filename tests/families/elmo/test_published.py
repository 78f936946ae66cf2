"""The published layout, both ways, against the computation written out in NumPy; real files where they are at hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import stemma
from stemma.errors import InputError
from stemma.families import save
from stemma.families.elmo import published
from stemma.families.elmo.model import ELMo
from stemma.inference.word_states import WordStates

from .reference import Reference, random_weights, write

OPTIONS: dict[str, Any] = {
    "lstm": {
        "cell_clip": 0.9, "proj_clip": 1.1, "use_skip_connections": True, "n_layers": 2, "projection_dim": 6, "dim": 10,
    },
    "char_cnn": {
        "embedding": {"dim": 3}, "filters": [[1, 4], [3, 5]], "n_highway": 2, "n_characters": 262,
        "max_characters_per_token": 12, "activation": "relu",
    },
}  # fmt: skip
SENTENCES = ["a b", "Don 't !", "naïve words of more than twelve characters", "a b"]


def options(**changes: Any) -> dict[str, Any]:
    """OPTIONS with values changed: lstm__n_layers=3."""
    made = json.loads(json.dumps(OPTIONS))
    for path, value in changes.items():
        group, key = path.split("__")
        made[group][key] = value
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, OPTIONS, random_weights(OPTIONS))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lstm__use_skip_connections": False, "lstm__cell_clip": None, "char_cnn__activation": "tanh"},
        {"lstm__n_layers": 3, "lstm__proj_clip": None, "char_cnn__n_highway": 1},
    ],
    ids=["usual", "no residual, cells free, tanh", "three layers"],
)
def test_all_layers_are_those_of_the_published_code(changes: dict[str, Any], tmp_path: Path) -> None:
    made = options(**changes)
    tensors = random_weights(made)
    write(tmp_path, made, tensors)
    reference, model = Reference(made, tensors), stemma.load(tmp_path)
    sentences = [sentence.split() for sentence in SENTENCES]
    fresh, carried = WordStates(model), WordStates(model, stateful=True)
    for words, ours in zip(sentences, fresh(sentences), strict=True):
        reference.reset()
        np.testing.assert_allclose(ours, reference.layers(words), rtol=0, atol=1e-5)
    reference.reset()
    for words in sentences:
        np.testing.assert_allclose(carried([words])[0], reference.layers(words), rtol=0, atol=1e-5)


def test_what_is_written_is_what_was_read(directory: Path, tmp_path: Path) -> None:
    model = stemma.load(directory)
    (tmp_path / "again").mkdir()
    published.save_published(model, tmp_path / "again")
    with h5py.File(tmp_path / "again/lm_weights.hdf5") as file:
        for name, tensor in random_weights(OPTIONS).items():
            np.testing.assert_allclose(file[name][...], tensor, rtol=0, atol=2e-7)  # a forget bias is kept plus 1
    written = json.loads((tmp_path / "again/options.json").read_text())
    assert {key: written[key] for key in OPTIONS} == OPTIONS


def test_a_directory_of_ours_has_the_published_layout_beside(directory: Path, tmp_path: Path) -> None:
    from stemma.data.tokenizers import train_tokenizer

    tokenizer = train_tokenizer(["the dog sees the fox\nthe fox"], "elmo", 300)
    published_model = stemma.load(directory)
    torch.manual_seed(0)
    model = ELMo(replace(published_model.config, vocabulary=tokenizer.vocabulary, predicted=6)).eval()
    save(model, tokenizer, tmp_path / "ours")
    assert (tmp_path / "ours/vocab.txt").read_text().split("\n") == ["</S>", "<S>", "<UNK>", "the", "fox", "dog", ""]
    (tmp_path / "theirs").mkdir()
    for name in ("options.json", "lm_weights.hdf5", "softmax_weights.hdf5"):
        (tmp_path / "ours" / name).rename(tmp_path / "theirs" / name)
    ours, theirs = stemma.load(tmp_path / "ours"), stemma.load(tmp_path / "theirs")
    assert theirs.config == replace(model.config, vocabulary=6, predicted=None)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-7, msg=name)
    with h5py.File(tmp_path / "theirs/softmax_weights.hdf5") as file:
        assert file["softmax/W"].shape == (6, 6) and file["softmax/b"].shape == (6,)


def test_other_architectures_have_no_published_layout(directory: Path, tmp_path: Path) -> None:
    config = replace(stemma.load(directory).config, architecture="transformer", heads=2)
    with pytest.raises(InputError, match="architecture transformer has no published layout"):
        published.save_published(ELMo(config), tmp_path)
    save(ELMo(config), None, tmp_path / "ours")
    assert not (tmp_path / "ours/options.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"char_cnn__n_characters": 261}, "n_characters is 261, expected 262 .261 is what it is in training"),
        ({"char_cnn__activation": "gelu"}, "activation is 'gelu', expected relu or tanh"),
        ({"lstm__dim": "wide"}, "options.json: dim is 'wide', expected a positive whole number"),
        ({"lstm__dim": 9}, r"Cell0/LSTMCell/W_0 is \[12, 40\], options.json makes it \[12, 36\]"),
        ({"lstm__dim": 20}, r"Cell0/LSTMCell/W_0 is \[12, 40\], options.json makes it \[12, 80\]"),
        (
            {"char_cnn__filters": [[1, 4], [2, 5]]},
            r"CNN/W_cnn_1 is \[1, 3, 3, 5\], options.json makes it \[1, 2, 3, 5\]",
        ),
        ({"lstm__n_layers": 3}, "tensor 'RNN_0/RNN/MultiRNNCell/Cell2/LSTMCell/W_0' is missing"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], message: str, directory: Path) -> None:
    (directory / "options.json").write_text(json.dumps(options(**changes)))
    with pytest.raises(InputError, match=message):
        stemma.load(directory)


def test_files_that_are_not_there_or_broken(directory: Path) -> None:
    made = options()
    del made["lstm"]
    (directory / "options.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match="not the options of an ELMo .KeyError: 'lstm'"):
        stemma.load(directory)
    (directory / "options.json").write_text(json.dumps(OPTIONS))
    content = (directory / "lm_weights.hdf5").read_bytes()
    (directory / "lm_weights.hdf5").write_bytes(content[:1000])
    with pytest.raises(InputError, match="lm_weights.hdf5: truncated or not an HDF5 file"):
        stemma.load(directory)
    (directory / "lm_weights.hdf5").write_bytes(content)
    with h5py.File(directory / "softmax_weights.hdf5", "w") as file:
        file.create_dataset("W", data=np.zeros((4, 6), np.float32))
    with pytest.raises(InputError, match="softmax_weights.hdf5: holds W, expected softmax/W and softmax/b"):
        stemma.load(directory)
    (directory / "lm_weights.hdf5").unlink()
    with pytest.raises(InputError, match=r"0 files \*weights.hdf5"):
        stemma.load(directory)
    (directory / "b-options.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 files \*options.json, expected one"):
        stemma.load(directory)


def test_without_h5py_it_is_said_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'stemma-lm\[elmo\]'"):
        stemma.load(directory)
