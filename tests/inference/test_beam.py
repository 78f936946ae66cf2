"""Beam search against transformers' own, and against enumeration of every text."""

import itertools

import pytest
import torch

from stemma.inference.beam import beam_search
from stemma.inference.decoder import Decoder


def searched(model, prompts, *, beams, new_tokens, **options):
    decoder = Decoder(model, prompts, copies=[beams] * len(prompts), new_tokens=new_tokens)
    return beam_search(decoder, beams=beams, limits=[new_tokens] * len(prompts), **options)


@pytest.mark.parametrize("exhaustive", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("beams", [2, 4])
def test_the_texts_and_scores_of_transformers(make_model, twin_of, beams, length_penalty, exhaustive):
    end, shorter = 5, 0
    for seed in (4, 10, 15, 17):  # with these the two stopping rules give different texts
        model = make_model(seed, vocabulary=10, scale=10.0)
        prompts = torch.randint(0, 10, (3, 6), generator=torch.Generator().manual_seed(seed))
        ours = searched(
            model,
            prompts.tolist(),
            beams=beams,
            new_tokens=12,
            end=end,
            length_penalty=length_penalty,
            exhaustive=exhaustive,
        )
        theirs = twin_of(model).generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=12,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=length_penalty,
            early_stopping="never" if exhaustive else False,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for prompt, hypotheses in enumerate(ours):
            rows = range(prompt * beams, (prompt + 1) * beams)
            assert len(hypotheses) == beams
            for row, hypothesis in zip(rows, hypotheses, strict=True):
                text = theirs.sequences[row, 6:].tolist()
                assert text[: len(hypothesis.tokens)] == hypothesis.tokens
                assert hypothesis.score == pytest.approx(theirs.sequences_scores[row].item(), abs=1e-4)
                assert end in hypothesis.tokens or len(hypothesis.tokens) == 12
                shorter += len(hypothesis.tokens) < 12
    assert shorter > 0 or length_penalty == 2.0  # the stopping rule was put to work


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_all_texts_as_beams_the_search_is_exact(make_model, length_penalty):
    """5 tokens, at most 3 of them, the last one ends a text: 4^3 + 4^2 + 4 + 1 = 85 texts, enumerated."""
    model, prompt, end = make_model(3, vocabulary=5), [1, 3, 2, 0], 4
    texts = [(end,)] + [
        (*body, last) for size in (1, 2) for body in itertools.product(range(4), repeat=size) for last in [end]
    ]
    texts += list(itertools.product(range(4), range(4), range(4)))
    assert len(texts) == 1 + 4 + 16 + 64
    scored = []
    with torch.no_grad():
        for text in texts:
            log_probabilities = model(torch.tensor([prompt + list(text)])).log_softmax(-1)[0]
            total = sum(log_probabilities[len(prompt) - 1 + i, token].item() for i, token in enumerate(text))
            scored.append((total / len(text) ** length_penalty, text))
    scored.sort(reverse=True)
    found = searched(model, [prompt], beams=85, new_tokens=3, end=end, length_penalty=length_penalty, exhaustive=True)[
        0
    ]
    assert [tuple(hypothesis.tokens) for hypothesis in found] == [text for _, text in scored]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in scored], abs=1e-4)


def test_log_probabilities_add_up_to_the_score(make_model):
    found = searched(make_model(1), [[5, 9, 200], [7]], beams=3, new_tokens=8, length_penalty=0.7)
    for hypothesis in itertools.chain(*found):
        assert len(hypothesis.log_probabilities) == len(hypothesis.tokens) == 8
        assert sum(hypothesis.log_probabilities) / 8**0.7 == pytest.approx(hypothesis.score, abs=1e-5)


def test_prompts_of_unequal_length_and_limits_are_searched_as_if_alone(make_model):
    model, prompts, limits = make_model(2), [[5, 6, 7, 8, 9], [4], [30, 31]], [3, 10, 6]
    decoder = Decoder(model, prompts, copies=[3, 3, 3], new_tokens=10)
    together = beam_search(decoder, beams=3, limits=limits, end=2)
    for prompt, limit, found in zip(prompts, limits, together, strict=True):
        alone = searched(model, [prompt], beams=3, new_tokens=limit, end=2)[0]
        assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in alone]


def test_one_beam_is_greedy_search(make_model):
    model, text = make_model(4), [3, 1, 4]
    found = searched(model, [text], beams=1, new_tokens=9)[0]
    with torch.no_grad():
        for token in found[0].tokens:
            assert token == model(torch.tensor([text]))[0, -1].argmax().item()
            text = [*text, token]
