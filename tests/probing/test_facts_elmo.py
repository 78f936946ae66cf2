"""ELMo's answers beside a plain computation with its own layers: one question, one direction at a time."""

from pathlib import Path

import pytest
import torch
from tiny_models import elmo_of, tokenizer_of
from torch import Tensor

from stemma.data.tokenizers import pieces_in_text
from stemma.errors import InputError
from stemma.families.elmo.model import ELMo
from stemma.families.elmo.published import save_published
from stemma.families.elmo.words import spell, spell_boundaries
from stemma.probing.asking import likeliest_answers
from stemma.probing.facts import Fact, Facts, Query, Relation
from stemma.probing.facts_answers import answer_scores
from stemma.probing.facts_readings import load_to_ask, reading_of
from stemma.probing.facts_run import probe
from stemma.probing.facts_selection import Asked, select

ARCHITECTURES = ("lstm", "transformer", "gated-cnn")
BEGIN, END = object(), object()
TEXTS = {
    "the cat sings in [MASK] .": (["the", "cat", "sings", "in"], ["."]),
    "[MASK] sees a fox": ([], ["sees", "a", "fox"]),
    "Anna (never heard of) is [MASK], dog--fox": (
        ["Anna", "(", "never", "heard", "of", ")", "is"],
        [",", "dog", "--", "fox"],
    ),
    "a dog is [MASK]": (["a", "dog", "is"], []),
}


def top_state(model: ELMo, words: list, direction: int) -> Tensor:
    """Return float [projection]: the last layer's state behind some words, read by one direction from its end."""
    marks = dict(zip((BEGIN, END), torch.from_numpy(spell_boundaries(12)), strict=True))
    read = [marks[word] if word in marks else torch.from_numpy(spell([word], 12))[0] for word in words]
    vectors = model.words(torch.stack(read)).expand(2, 1, -1, -1)
    return model.context(vectors, torch.tensor([len(words)]))[0][-1][direction, 0, -1]


@torch.no_grad()
def expected_of(model: ELMo, before: list, after: list) -> Tensor:
    forward = model.output(top_state(model, [BEGIN, *before], 0)).log_softmax(-1)
    backward = model.output(top_state(model, [END, *reversed(after)], 1)).log_softmax(-1)
    return (forward + backward) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_directions_each_from_its_own_side(architecture: str) -> None:
    model, tokenizer = elmo_of(architecture), tokenizer_of("elmo")
    tokens = list(range(tokenizer.vocabulary))
    found = reading_of(model, tokenizer).log_probabilities([Query.of([text]) for text in TEXTS], tokens)
    expected = torch.stack([expected_of(model, before, after) for before, after in TEXTS.values()])
    assert expected.std(0).min() > 1e-4  # questions have different answers
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sentences_are_joined_by_their_marks() -> None:
    model, tokenizer = elmo_of(), tokenizer_of("elmo")
    query = Query("the cat is", " red", earlier="a dog", later="a fox")
    expected = expected_of(model, ["a", "dog", END, BEGIN, "the", "cat", "is"], ["red", END, BEGIN, "a", "fox"])
    (found,) = reading_of(model, tokenizer).log_probabilities([query], [5, 9])
    torch.testing.assert_close(found, expected[[5, 9]], atol=1e-5, rtol=1e-5)


def test_answers_of_several_words_are_the_mean_of_both_directions() -> None:
    model, tokenizer = elmo_of(), tokenizer_of("elmo")
    query = Query("the cat sings in", " .")
    answers = ["Paris", "quick brown", "red blue fox"]
    (found,) = answer_scores(
        model, tokenizer, reading_of(model, tokenizer), [query], pieces_in_text(tokenizer, answers)
    )
    expected = []
    with torch.no_grad():
        for answer in map(str.split, answers):
            total = 0.0
            for place, word in enumerate(answer):
                before = ["the", "cat", "sings", "in", *answer[:place]]
                total += float(expected_of(model, before, [*answer[place + 1 :], "."])[tokenizer.id(word)])
            expected.append(total)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_words_outside_of_the_softmax_are_no_candidates() -> None:
    tokenizer = tokenizer_of("elmo")
    model = elmo_of(predicted=20)
    words = [tokenizer.token(number) for number in range(3, tokenizer.vocabulary - 1)]
    facts = [Fact("r", "dog", words[0]), Fact("r", "dog", words[-1])]
    source = Facts("f", {"r": Relation("r", ("[X] is [Y] .",))}, facts, 2)
    asked = [Asked("elmo", model, tokenizer)]
    selection = select(asked, source, words=words)
    assert selection.vocabulary == words[:17]
    assert selection.dropped == {"object not one token in every model": 1}
    (row,) = probe(asked, selection).predictions
    scores = expected_of(model, ["dog", "is"], ["."])[3:]
    assert row["rank"] == 1 + int((scores > scores[0]).sum())
    assert row["log_probability"] == pytest.approx(float(scores[0]), abs=1e-5)
    assert select(asked, source, candidates="objects").dropped == {"object unknown to a model": 1}
    with pytest.raises(InputError, match="can be the answer of all"):
        select(asked, source, words=[words[-1]])


def test_likeliest_answers_are_words() -> None:
    model, tokenizer = elmo_of(), tokenizer_of("elmo")
    found = likeliest_answers(model, tokenizer, "the cat sings in [MASK] .", top=100)
    expected = expected_of(model, ["the", "cat", "sings", "in"], ["."])
    assert dict(found) == pytest.approx(
        {tokenizer.token(number): float(expected[number]) for number in range(3, tokenizer.vocabulary - 1)}, abs=1e-5
    )
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_published_weights_answer_with_their_softmax_and_vocabulary(tmp_path: Path) -> None:
    words = ["</S>", "<S>", "<UNK>", "the", "dog", "fox", "Paris"]
    model = elmo_of(vocabulary=len(words))
    save_published(model, tmp_path, words)
    (tmp_path / "vocab.txt").rename(tmp_path / "vocab-2016-09-10.txt")
    loaded, tokenizer = load_to_ask(str(tmp_path))
    assert tokenizer.encode("the  fox in Paris") == [3, 5, 2, 6]
    (found,) = reading_of(loaded, tokenizer).log_probabilities([Query("the", " dog")], range(7))
    torch.testing.assert_close(found, expected_of(model, ["the"], ["dog"]), atol=1e-5, rtol=1e-5)


def test_published_weights_without_a_softmax_are_refused_in_one_line(tmp_path: Path) -> None:
    model = elmo_of(vocabulary=0)
    save_published(model, tmp_path)
    with pytest.raises(InputError, match="an ELMo without a softmax predicts no words: expected .*softmax_weights"):
        load_to_ask(str(tmp_path))
