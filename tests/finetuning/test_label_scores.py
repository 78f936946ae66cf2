"""Labels as words: GLM's cloze question and T5's text, each scored by the likelihood of the whole word."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import model_of, tokenizer_of

from stemma import families
from stemma.data.labelled import LabelledData
from stemma.errors import InputError
from stemma.families.glm.tokens import GLMTokens
from stemma.finetuning.cloze import ClozeClassification
from stemma.finetuning.measuring import scores_of
from stemma.finetuning.patterns import fill_pattern
from stemma.finetuning.text_labels import TextClassification
from stemma.inference.filling_scores import score_fillings
from stemma.layers.masks import Mask

TEXTS = [("the lazy dog",), ("a good film who sees a bad one",), ("red",)]
PAIRS = [("the lazy dog", "a good film"), ("one two three", "the cat"), ("red", "blue green red")]


def data_of(pair: bool) -> LabelledData:
    return LabelledData(PAIRS if pair else TEXTS, [0, 2, 1], ("good", "bad", "neither"))


def cloze(words: list[str], pair: bool, longest: int = 64) -> ClozeClassification:
    return ClozeClassification.of(tokenizer_of("glm"), words, longest, pattern=None, pair=pair)


def contexts_of(pair: bool) -> list[list[int]]:
    """The questions, written out."""
    tokenizer, ids = tokenizer_of("glm"), GLMTokens.of(tokenizer_of("glm"))
    sides = [(a, f", {b}") for a, b in PAIRS] if pair else [(f"{text} It is", ".") for (text,) in TEXTS]
    encoded = [[tokenizer.encode_batch([side])[0] for side in both] for both in sides]
    return [[ids.beginning, *before, ids.mask, *after, ids.end] for before, after in encoded]


def single_words(count: int) -> list[str]:
    """Words that are one token behind a blank."""
    tokenizer = tokenizer_of("glm")
    words = [tokenizer.token(index).removeprefix("Ġ") for index in range(tokenizer.vocabulary)]
    return [w for w in dict.fromkeys(words) if w.isalpha() and len(tokenizer.encode_batch([f" {w}"])[0]) == 1][:count]


@pytest.mark.parametrize("pair", [False, True])
def test_words_of_one_token_are_the_logits_at_the_start_token(pair: bool) -> None:
    model, tokenizer, ids = model_of("glm"), tokenizer_of("glm"), GLMTokens.of(tokenizer_of("glm"))
    words = single_words(3)
    objective = cloze(words, pair)
    assert objective.single and len(words) == 3
    expected = []
    for context in contexts_of(pair):
        tokens = torch.tensor([[*context, ids.piece_start]])
        place, length = context.index(ids.mask), len(context)
        positions = torch.tensor([[[*range(length), place], [0] * length + [1]]])
        mask = Mask(causal=True, prefix_lengths=torch.tensor([length]))
        with torch.no_grad():
            logits = model(tokens, positions, mask)[0, -1]
        expected.append(torch.stack([logits[tokenizer.encode_batch([f" {word}"])[0][0]] for word in words]))
    examples = objective.encode(data_of(pair), tokenizer)
    found = scores_of(model, objective, examples)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    loss, _ = objective.loss(model, objective.collate(examples))
    torch.testing.assert_close(loss, F.cross_entropy(torch.stack(expected), torch.tensor([0, 2, 1])))


@pytest.mark.parametrize("pair", [False, True])
def test_words_of_several_tokens_are_what_fills_the_blank(pair: bool) -> None:
    model, tokenizer, ids = model_of("glm"), tokenizer_of("glm"), GLMTokens.of(tokenizer_of("glm"))
    words = ["good", "bad", "neither"]
    objective = cloze(words, pair)
    assert not objective.single
    columns = []
    for word in words:
        piece = [tokenizer.encode_batch([f" {word}"])[0]]
        columns.append([scores[0] for scores in score_fillings(model, ids, contexts_of(pair), [piece] * 3)])
    examples = objective.encode(data_of(pair), tokenizer)
    found = scores_of(model, objective, examples)
    torch.testing.assert_close(found, torch.tensor(columns).T, rtol=1e-5, atol=1e-5)
    loss, _ = objective.loss(model, objective.collate(examples))
    torch.testing.assert_close(loss, F.cross_entropy(torch.tensor(columns).T, torch.tensor([0, 2, 1])))
    alone = torch.cat([scores_of(model, objective, [example]) for example in examples])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pair", [False, True])
def test_a_label_in_t5_is_as_likely_as_its_text_in_transformers(pair: bool, tmp_path) -> None:
    model, tokenizer = model_of("t5"), tokenizer_of("t5")
    families.save(model, tokenizer, tmp_path)
    twin = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    words = ["good", "bad", "neither"]
    objective = TextClassification.of(tokenizer, words, 64, pattern=None, pair=pair)
    examples = objective.encode(data_of(pair), tokenizer)
    found = scores_of(model, objective, examples)
    end = tokenizer.separator
    losses = []
    for row, texts in enumerate(PAIRS if pair else TEXTS):
        source = "first: {} second: {}".format(*texts) if pair else texts[0]
        given = torch.tensor([[*tokenizer.encode_batch([source])[0], end]])
        for column, word in enumerate(words):
            target = torch.tensor([[*tokenizer.encode_batch([word])[0], end]])
            with torch.no_grad():
                log_probabilities = twin(input_ids=given, labels=target).logits[0].log_softmax(-1)
            likelihood = log_probabilities.gather(1, target.T).sum()
            torch.testing.assert_close(found[row, column], likelihood, rtol=1e-5, atol=1e-5)
            if column == [0, 2, 1][row]:
                losses.append((likelihood, target.shape[1]))
    loss, sums = objective.loss(model, objective.collate(examples))
    assert int(sums["targets"]) == sum(size for _, size in losses)
    expected = -sum(likelihood for likelihood, _ in losses) / sum(size for _, size in losses)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    alone = torch.cat([scores_of(model, objective, [example]) for example in examples])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-5)


def test_no_text_of_a_pair_is_lost_and_the_blank_stays() -> None:
    long = LabelledData([("the lazy dog " * 30, "a good film"), ("red", "who sings " * 30)], [0, 1], ("a", "b"))
    tokenizer = tokenizer_of("glm")
    objective = cloze(["good", "bad"], True, longest=40)
    with pytest.warns(UserWarning, match="2 of 2 inputs are cut"):
        rows = [example["rows"] for example in objective.encode(long, tokenizer)]
    for example, kept in zip(rows, (" a good film", "red"), strict=True):
        assert max(len(row["tokens"]) for row in example) == 40
        assert kept in tokenizer.decode(example[0]["tokens"])
    end = tokenizer_of("t5").separator
    source = TextClassification.of(tokenizer_of("t5"), ["good", "bad"], 40, pattern=None, pair=True)
    with pytest.warns(UserWarning, match="2 of 2 inputs are cut"):
        (first, second) = (example["source"] for example in source.encode(long, tokenizer_of("t5")))
    assert len(first) == 40 and first[-1] == end and "second: a good film" in tokenizer_of("t5").decode(first)
    assert tokenizer_of("t5").decode(second).startswith("first: red second: who")


@pytest.mark.parametrize("family", ["bert", "gpt", "glm", "t5"])
def test_a_filled_pattern_is_written_as_the_tokenizer_writes_the_whole(family: str) -> None:
    tokenizer = tokenizer_of(family)
    rows = [{"text": "the {pair} dog", "pair": "a good film."}]
    (found,) = fill_pattern("first: {text} second: {pair} end", rows, tokenizer, 64)
    assert found == tokenizer.encode_batch(["first: the {pair} dog second: a good film. end"])[0]


def test_what_cannot_be_a_question_is_one_line() -> None:
    tokenizer = tokenizer_of("glm")
    for pattern, pair, message in (
        ("{text} It is", False, "0 blanks; expected one \\[MASK\\]"),
        ("{text} [MASK] [MASK]", False, "2 blanks"),
        ("It is [MASK].", False, "expected {text} in it"),
        ("{text} [MASK]", True, "expected {text} and {pair} in it"),
    ):
        with pytest.raises(InputError, match=message):
            ClozeClassification.of(tokenizer, ["a", "b"], 64, pattern=pattern, pair=pair)
    with pytest.raises(InputError, match="label word 'a'"):
        ClozeClassification.of(tokenizer, ["a", "a"], 64, pattern=None, pair=False)
    objective = ClozeClassification.of(tokenizer, ["good", "bad"], 12, pattern="{text} It is [MASK] .", pair=False)
    with pytest.raises(InputError, match="pattern .* tokens without its texts; expected at most"):
        objective.encode(data_of(False), tokenizer)
    with pytest.raises(InputError, match="expected {text} in it"):
        TextClassification.of(tokenizer_of("t5"), ["a", "b"], 64, pattern="sst2:", pair=False)
    with pytest.raises(InputError, match="two of them have the same tokens"):
        TextClassification.of(tokenizer_of("t5"), ["a", "a"], 64, pattern=None, pair=False)
