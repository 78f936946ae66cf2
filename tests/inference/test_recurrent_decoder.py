"""Texts of an LSTM, whose cache is its state: the tokens of reading all of the text anew for each."""

import pytest
import torch

from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.inference.generate import generate
from stemma.inference.recurrent_decoder import RecurrentDecoder

PROMPTS = ["the quick brown fox", "lazy", "jumps over the lazy dog while naïve öl", "dogs"]


@pytest.fixture(scope="module")
def model(tokenizer) -> LSTM:
    torch.manual_seed(0)
    model = LSTM(LSTMConfig(tokenizer.vocabulary, embedding=16, hidden=16, layers=2, inner=20, tie_output=True))
    for parameter in model.parameters():
        parameter.data *= 5  # so that tokens differ in likelihood, and texts from each other
    return model.eval()


def log_probabilities(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0].log_softmax(-1)


@pytest.mark.parametrize("new_tokens", [5, 24])  # 24: with a prepacked output projection
def test_greedy_tokens_are_those_without_a_state(model, tokenizer, new_tokens):
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=new_tokens, temperature=0, log_probabilities=True)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = tokenizer.encode(prompt)
        for token, score in zip(text.tokens, text.log_probabilities, strict=True):
            expected = log_probabilities(model, tokens)[-1]
            assert token == int(expected.argmax())
            assert score == pytest.approx(float(expected.max()), abs=1e-4)
            tokens.append(token)
    assert len({tuple(text.tokens) for text in texts}) > 1


def test_a_drawn_text_does_not_depend_on_its_batch(model, tokenizer):
    together = generate(model, tokenizer, PROMPTS, max_new_tokens=12, samples=3, seed=7)
    for prompt in PROMPTS:
        alone = generate(model, tokenizer, prompt, max_new_tokens=12, samples=3, seed=7)
        theirs = [text.tokens for text in together if text.prompt == PROMPTS.index(prompt)]
        assert [text.tokens for text in alone] == theirs


def test_beams_find_what_all_continuations_hold(model, tokenizer):
    """Of two tokens, with as many beams as there are tokens."""
    (found,) = generate(model, tokenizer, "lazy", max_new_tokens=2, beams=tokenizer.vocabulary, length_penalty=0)
    tokens = tokenizer.encode("lazy")
    first = log_probabilities(model, tokens)[-1]
    best = max(
        (float(first[one] + second.max()), [one, int(second.argmax())])
        for one in range(tokenizer.vocabulary)
        if one != tokenizer.separator
        for second in [log_probabilities(model, [*tokens, one])[-1]]
    )
    ended = float(first[tokenizer.separator])
    assert found.score == pytest.approx(max(best[0], ended), abs=1e-4)
    assert found.tokens == (best[1] if best[0] > ended else [tokenizer.separator])


def test_there_is_no_longest_text(model, tokenizer):
    (text,) = generate(model, tokenizer, "the lazy dog " * 200, max_new_tokens=4, temperature=0, truncate=True)
    assert text.finish_reason in ("length", "end")
    tokens = tokenizer.encode("the lazy dog " * 200)
    assert text.tokens[0] == int(log_probabilities(model, tokens)[-1].argmax())


def test_rows_are_dropped_and_doubled(model):
    decoder = RecurrentDecoder(model, [[3, 4], [5], [6, 7]], copies=[1, 2, 1], new_tokens=4)
    logits = decoder.read_prompts()
    rows = [[3, 4], [5], [5], [6, 7]]
    torch.testing.assert_close(logits, torch.stack([model(torch.tensor([row]))[0, -1] for row in rows]))
    decoder.keep([3, 1])
    decoder.reorder(torch.tensor([1, 0, 0]))
    logits = decoder.step(torch.tensor([8, 9, 10]))
    rows = [[5, 8], [6, 7, 9], [6, 7, 10]]
    torch.testing.assert_close(logits, torch.stack([model(torch.tensor([row]))[0, -1] for row in rows]))
