"""Vectors of words in bulk: the same as one at a time, without reading the characters of a word twice."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stemma.errors import InputError
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.inference import word_states
from stemma.inference.embeddings import embed
from stemma.inference.word_states import WordStates, embed_sentences, layers_named, word_vectors

CONFIG = ELMoConfig(
    characters=4, filters=((1, 6), (2, 6)), highways=1, longest_word=9, projection=8, cell=12, heads=2, feed_forward=16
)
SENTENCES = [
    text.split() for text in ("a dog sees the dog", "the dog", "dog", "a cat sees a very small dog", "the cat")
]


@pytest.fixture
def model() -> ELMo:
    torch.manual_seed(0)
    made = ELMo(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    return made


@pytest.mark.parametrize("options", [{}, {"batch_words": 3}, {"most_words": 4}], ids=["", "small batches", "few kept"])
def test_bulk_gives_what_each_sentence_has_alone(model: ELMo, options: dict[str, int]) -> None:
    states = WordStates(model, **options)
    done: list[int] = []
    for _ in range(2):  # the second time from what was kept
        for words, layers in zip(SENTENCES, states(SENTENCES, done.append), strict=True):
            np.testing.assert_allclose(layers, WordStates(model)([words])[0], rtol=0, atol=1e-6)
    assert sum(done) == 2 * len(SENTENCES)


def test_a_word_is_read_once(model: ELMo, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = model.words.forward
    monkeypatch.setattr(
        model.words, "forward", lambda characters: (read.append(len(characters)), forward(characters))[1]
    )
    states = WordStates(model)
    states(SENTENCES)
    states(SENTENCES)
    assert sum(read) == 2 + len({word for words in SENTENCES for word in words})  # and the two ends of a sentence


def test_states_are_carried_only_where_that_is_asked_for(model: ELMo) -> None:
    fresh = WordStates(model)
    assert np.array_equal(fresh([SENTENCES[0]])[0], fresh([SENTENCES[0]])[0])
    carried = WordStates(model, stateful=True)
    first, second = carried([SENTENCES[0]])[0], carried([SENTENCES[0]])[0]
    np.testing.assert_array_equal(first, fresh([SENTENCES[0]])[0])
    assert np.array_equal(first[0], second[0]) and np.abs(first[1:] - second[1:]).max() > 1e-3
    carried.reset()
    np.testing.assert_array_equal(carried([SENTENCES[0]])[0], first)


def test_each_row_carries_its_own_state(model: ELMo) -> None:
    rows, alone = WordStates(model, stateful=True), WordStates(model, stateful=True)
    rows([SENTENCES[0], SENTENCES[3]])
    together = rows([SENTENCES[1], SENTENCES[2], SENTENCES[4]])
    alone([SENTENCES[3]])
    np.testing.assert_allclose(together[1], alone([SENTENCES[2]])[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(together[2], WordStates(model)([SENTENCES[4]])[0], rtol=0, atol=1e-6)  # a new row


def test_layers_are_chosen_by_name(model: ELMo) -> None:
    layers = WordStates(model)(SENTENCES)
    for wanted, expected in (("average", [one.mean(0) for one in layers]), (2, [one[2] for one in layers])):
        for ours, theirs in zip(word_vectors(WordStates(model), SENTENCES, wanted), expected, strict=True):  # type: ignore[arg-type]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert [layers_named(name, model) for name in (None, "all", "average", "2")] == ["all", "all", "average", 2]
    assert layers_named(None, model, of_words=False) == "average"
    for name, of_words in (("3", True), ("-1", True), ("top", True), ("all", False)):
        with pytest.raises(InputError, match="expected .*average or a number from 0 to 2"):
            layers_named(name, model, of_words)


def test_one_vector_a_text(model: ELMo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_states, "POOL", 2)
    words = [layers.mean(0) for layers in WordStates(model)(SENTENCES)]
    mean = embed_sentences(model, SENTENCES)
    np.testing.assert_allclose(mean, np.stack([one.mean(0) for one in words]), rtol=0, atol=1e-6)
    highest = embed_sentences(model, SENTENCES, pooling="max", normalize=True)
    expected = np.stack([one.max(0) for one in words])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(highest, expected, rtol=0, atol=1e-6)
    texts = [" ".join(one) for one in SENTENCES]
    np.testing.assert_array_equal(embed(model, None, texts), mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda model: WordStates(model.train()), "training mode"),
        (lambda model: WordStates(model)([["a"], []]), "sentence 2 has no words"),
        (lambda model: embed_sentences(model, [["a"]] * 2049 + [[]]), "sentence 2050 has no words"),
        (lambda model: embed_sentences(model, [["a"]], pooling="cls"), "pooling is 'cls', expected mean or max"),
        (
            lambda model: WordStates(ELMo(replace(CONFIG, architecture="transformer")).eval(), stateful=True),
            "architecture transformer has no state",
        ),
    ],
)
def test_mistakes(model: ELMo, run: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(model)
