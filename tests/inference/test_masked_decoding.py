"""Writing with [MASK]s and a cache, against computing the whole sequence anew at each step."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import BERTTokens
from stemma.inference.masked_decoding import MaskedDecoder, score_left_to_right, write
from stemma.inference.sampling import Sampling
from stemma.layers.masks import Mask

SEPARATOR, CLS, SEP, MASK = range(4)
IDS = BERTTokens(CLS, SEP, MASK, SEPARATOR, texts=["", "", "", "", *(f" w{index}" for index in range(16))])
PROMPTS = [[CLS, 5, 6, 7, SEP], [CLS, 8, SEP], [CLS, 9, 10, 11, 12, 13, 14, SEP], [CLS, 5, SEP]]


def small_model(seed: int = 0, vocabulary: int = 20) -> BERT:
    torch.manual_seed(seed)
    model = BERT(BERTConfig(vocabulary=vocabulary, context=32, segments=6, layers=2, hidden=24, heads=3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm.weight" in name))
        model.masked_head.bias[SEP] += 1.0  # so that texts end now and then
    return model.eval()


@torch.no_grad()
def recomputed(model: BERT, prompt: list[int], target: list[int], segments: tuple[int, int] = (4, 5)) -> Tensor:
    """Log-probabilities [vocabulary] of the token after `target`: one pass over prompt, target and a [MASK]."""
    tokens = torch.tensor([[*prompt, *target, MASK]])
    ids = torch.tensor([[segments[0]] * len(prompt) + [segments[1]] * (len(target) + 1)])
    mask = Mask(causal=True, prefix_lengths=torch.tensor([len(prompt)]))
    return model(tokens, ids, mask)[0, -1].log_softmax(-1)


@pytest.mark.parametrize("seed", range(4))
def test_writing_is_recomputation_at_each_step(seed: int) -> None:
    model = small_model(seed)
    found = write(model, IDS, PROMPTS, limit=8)
    for prompt, written in zip(PROMPTS, found, strict=True):
        for index, score in enumerate(written.log_probabilities):
            expected = recomputed(model, prompt, written.tokens[:index])
            chosen = [*written.tokens, SEP][index]
            assert int(expected.argmax()) == chosen
            assert score == pytest.approx(expected[chosen].item(), abs=1e-5)
        assert written.ended == (len(written.log_probabilities) == len(written.tokens) + 1)
        assert written.ended or len(written.tokens) == 8
        assert SEP not in written.tokens


def test_texts_end_and_reach_the_limit() -> None:
    found = [written for seed in range(4) for written in write(small_model(seed), IDS, PROMPTS, limit=8)]
    assert {written.ended for written in found} == {True, False}


def test_every_step_of_given_tokens_is_recomputation() -> None:
    model = small_model(1)
    decoder = MaskedDecoder(model, IDS, PROMPTS, new_tokens=6)
    logits, fed = decoder.read_prompts(), [[] for _ in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for prompt, target, row in zip(PROMPTS, fed, logits, strict=True):
            torch.testing.assert_close(row.log_softmax(-1), recomputed(model, prompt, target), rtol=0, atol=1e-5)
        tokens = torch.randint(4, 20, (len(PROMPTS),), generator=generator)
        for target, token in zip(fed, tokens.tolist(), strict=True):
            target.append(token)
        logits = decoder.step(tokens)


def test_a_text_does_not_depend_on_the_batch() -> None:
    model, sampling = small_model(2), Sampling(temperature=0.9)
    together = write(model, IDS, PROMPTS, limit=8, sampling=sampling, seed=5)
    alone = [write(model, IDS, [prompt], limit=8, sampling=sampling, seed=5)[0] for prompt in PROMPTS]
    assert [written.tokens for written in together] == [written.tokens for written in alone]
    assert together != write(model, IDS, PROMPTS, limit=8, sampling=sampling, seed=6)


def test_beam_search_finds_the_likeliest_text() -> None:
    model, vocabulary = small_model(3, vocabulary=8), 8
    prompts = [[CLS, 5, 6, SEP], [CLS, 7, SEP]]
    for prompt, written in zip(prompts, write(model, IDS, prompts, limit=2, beams=64), strict=True):
        candidates = {}
        for target in [(), *product(range(vocabulary), repeat=1), *product(range(vocabulary), repeat=2)]:
            if SEP in target:
                continue
            tokens = [*target, SEP][:2]
            candidates[target] = sum(
                recomputed(model, prompt, tokens[:index])[token].item() for index, token in enumerate(tokens)
            )
        best = max(candidates, key=lambda target: candidates[target])
        assert tuple(written.tokens) == best
        assert sum(written.log_probabilities) == pytest.approx(candidates[best], abs=1e-5)


def test_scores_from_left_to_right() -> None:
    model, texts = small_model(4), [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15]]
    for text, scores in zip(texts, score_left_to_right(model, IDS, texts), strict=True):
        expected = [recomputed(model, [CLS], text[:index], (2, 2))[token].item() for index, token in enumerate(text)]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_scores_are_the_chain_rule() -> None:
    texts = [list(text) for text in product(range(6), repeat=3)]
    scores = score_left_to_right(small_model(5, vocabulary=6), IDS, texts)
    assert sum(math.exp(sum(row)) for row in scores) == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_fit() -> None:
    model = small_model()
    with pytest.raises(InputError, match="39 tokens of prompt and text, the model reads at most 32"):
        write(model, IDS, PROMPTS, limit=30)
    with pytest.raises(InputError, match="texts of up to 32 tokens, expected 1 to 31"):
        score_left_to_right(model, IDS, [[5] * 32])
