"""Layers of every family beside what the model itself computes; the file that keeps them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import elmo_of, model_of, tokenizer_of

from stemma import families
from stemma.errors import InputError
from stemma.families.elmo.words import spell
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.inference.embeddings import frame_of
from stemma.inference.states import layers_of, states_of
from stemma.probing import layer_cache
from stemma.probing.layer_cache import layers_of_sentences

SENTENCES = [text.split() for text in ("the quick brown fox", "who sees Anna in Paris or London", "dog")]


@pytest.mark.parametrize("family", ["bert", "gpt", "t5", "mistral"])
def test_layers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt" if family == "mistral" else family)
    families.save(model_of(family), tokenizer, tmp_path)
    theirs: Any = transformers.AutoModel.from_pretrained(tmp_path).eval()
    theirs = theirs.encoder if family == "t5" else theirs
    tokens = torch.tensor([[5, 9, 17, 30, 8], [12, 7, 6, 0, 0]])
    lengths = torch.tensor([5, 3])
    with torch.inference_mode():
        ours = layers_of(families.load(tmp_path), tokens, lengths)
        mask = (torch.arange(5) < lengths.unsqueeze(1)).long()
        expected = torch.stack(theirs(tokens, attention_mask=mask, output_hidden_states=True).hidden_states)
    assert ours.shape == (3, 2, 5, 32)
    torch.testing.assert_close(ours[:, 0], expected[:, 0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours[:, 1, :3], expected[:, 1, :3], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["glm", "transformer"])
def test_the_last_layer_is_the_states_and_no_hook_stays(family: str) -> None:
    model, tokens = model_of(family), torch.tensor([[5, 9, 17, 30, 8]])
    layers = layers_of(model, tokens, torch.tensor([5]))
    torch.testing.assert_close(layers[-1], states_of(model, tokens, torch.tensor([5])))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.modules())


def test_layers_of_different_widths_are_refused() -> None:
    model = LSTM(LSTMConfig(50, embedding=8, hidden=16, layers=1)).eval()
    with pytest.raises(InputError, match="^an LSTM whose layers are 8, 16 wide"):
        layers_of(model, torch.tensor([[1, 2]]), torch.tensor([2]))


@pytest.mark.parametrize("family", ["bert", "gpt", "glm", "t5", "transformer"])
def test_each_sentence_is_read_in_its_frame(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = model_of(family), tokenizer_of(family)
    layers = layers_of_sentences(model, tokenizer, SENTENCES, tmp_path)
    before, after = frame_of(model, tokenizer)
    for number, words in enumerate(SENTENCES):
        ids = tokenizer.encode(" ".join(words))
        tokens = torch.tensor([[*before, *ids, *after]])
        with torch.inference_mode():
            alone = layers_of(model, tokens, torch.tensor([tokens.shape[1]]))[:, 0]
        expected = alone[:, len(before) : len(before) + len(ids)].transpose(0, 1)
        found = layers.states[layers.starts[number] : layers.starts[number + 1]].float()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=8e-3)  # of a bfloat16
    assert (layers.cut, layers.lost) == (0, 0)

    def never(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(layer_cache, "_of_tokens", never)
    again = layers_of_sentences(model, tokenizer, SENTENCES, tmp_path)
    assert torch.equal(again.states, layers.states)
    with pytest.raises(AssertionError):  # other weights, other layers
        layers_of_sentences(model_of(family, seed=1), tokenizer, SENTENCES, tmp_path)


@pytest.mark.parametrize("architecture", ["lstm", "transformer", "gated-cnn"])
def test_words_of_an_elmo_in_every_layer(architecture: str, tmp_path: Path) -> None:
    model = elmo_of(architecture, layers=3)
    layers = layers_of_sentences(model, None, SENTENCES, tmp_path)
    assert layers.states.shape == (12, 4, 32)
    for number, words in enumerate(SENTENCES):
        with torch.inference_mode():  # a sentence by itself: of each word the layer 0 twice, then both directions
            alone = model(torch.from_numpy(spell(words, 12))[None])[:, 0].transpose(0, 1)
        found = layers.states[layers.starts[number] : layers.starts[number + 1]].float()
        torch.testing.assert_close(found, alone, atol=1e-3, rtol=8e-3)
        torch.testing.assert_close(found[:, 0, :16], found[:, 0, 16:])
    assert [one.tolist() for one in layers.last] == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1]]


def test_what_is_behind_the_context_is_cut_and_counted(tmp_path: Path) -> None:
    model, tokenizer = model_of("gpt", context=6), tokenizer_of("gpt")
    words = ["fox", "the", "red", "the", "blue"]
    pieces = [len(tokenizer.encode(f" {word}" if number else word)) for number, word in enumerate(words)]
    ends = np.cumsum(pieces)
    layers = layers_of_sentences(model, tokenizer, [words], tmp_path)
    assert layers.cut == int((ends > 6).sum()) > 0 and len(layers.states) == min(6, ends[-1])
    assert [bool(last > first) for first, last in zip(layers.first[0], layers.last[0], strict=True)] == (
        (ends <= 6).tolist()
    )


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="training mode"):
        layers_of_sentences(model_of("gpt").train(), tokenizer_of("gpt"), SENTENCES, tmp_path)
    monkeypatch.setattr(layer_cache.shutil, "disk_usage", lambda path: type("", (), {"free": 10})())
    with pytest.raises(InputError, match="0 MB are free"):
        layers_of_sentences(model_of("gpt"), tokenizer_of("gpt"), SENTENCES, tmp_path)
    assert not list((tmp_path / "layers").iterdir())
