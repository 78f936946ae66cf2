"""Filters against transformers' own, draws against the exact distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stemma.errors import InputError
from stemma.inference import sampling_rows
from stemma.inference.sampling import (
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities_of,
    penalize_repetition,
    uniforms,
)


def random_logits(rows: int = 6, vocabulary: int = 1000, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("k", [1, 7, 1000, 5000])
def test_top_k_keeps_what_transformers_keeps(k, scale):
    logits = random_logits(scale=scale)
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])  # 0.1: the nucleus is larger than the first guess of 256 tokens
@pytest.mark.parametrize("p", [0.001, 0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(p, scale):
    logits = random_logits(scale=scale)
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.2, 1.0])
def test_min_p_keeps_what_transformers_keeps(p):
    logits = random_logits()
    assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits = random_logits()
    text = torch.randint(0, 1000, (6, 40), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, 1000, dtype=torch.bool).scatter_(1, text, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(text, logits.clone())
    assert torch.equal(penalize_repetition(logits, seen, penalty), expected)
    likelier = penalize_repetition(logits, seen, penalty) > logits
    assert likelier.any() == (penalty < 1)  # a penalty above 1 never makes anything likelier, negative logits included


def test_filters_follow_one_another_as_in_transformers():
    logits = random_logits(scale=4.0, seed=3)
    text = torch.randint(0, 1000, (6, 200), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, 1000, dtype=torch.bool).scatter_(1, text, True)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(text, logits.clone())
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)):
        expected = warper(None, expected)
    ours = Sampling(0.7, 40, 0.8, 0.05, 1.5).filter(penalize_repetition(logits, seen, 1.5))
    assert torch.equal(ours.isfinite(), expected.isfinite())
    assert torch.equal(ours, expected)


def test_parameters_may_differ_from_row_to_row():
    logits = random_logits(rows=3)
    k, p = torch.tensor([[2], [900], [30]]), torch.tensor([[0.2], [0.9], [0.6]])
    for filtered, single, values in (
        (keep_top_k(logits, k), keep_top_k, k),
        (keep_top_p(logits, p), keep_top_p, p),
        (keep_min_p(logits, p), keep_min_p, p),
    ):
        rows = [single(logits[i : i + 1], values[i, 0].item()) for i in range(3)]
        assert torch.equal(filtered, torch.cat(rows))


def test_ties_with_the_last_token_kept_are_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[True, True, True, False]]
    # The probabilities are 0.53, 0.20, 0.20, 0.07.
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[True, True, True, False]]
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=1.7, top_k=9),
        Sampling(top_p=0.7),
        Sampling(min_p=0.2),
        Sampling(1.3, 12, 0.9, 0.05, 1.8),
    ],
)
def test_samples_follow_the_exact_distribution(sampling):
    """Chi-square of 20,000 draws against probabilities computed in NumPy from the definitions."""
    vocabulary, draws = 20, 20_000
    logits = random_logits(1, vocabulary, scale=1.5, seed=7)
    seen = torch.zeros(1, vocabulary, dtype=torch.bool)
    seen[0, :10] = True
    uniform = torch.from_numpy(uniforms(seed=5, sample=0, prompt=[1, 2, 3], count=draws))
    chosen = sampling.choose(logits.expand(draws, -1), uniform, seen.expand(draws, -1))
    counts = np.bincount(chosen.numpy(), minlength=vocabulary)
    expected = exact_distribution(logits[0].double().numpy(), sampling, seen[0].numpy())
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert chisquare(counts[possible], draws * expected[possible]).pvalue > 0.01


def exact_distribution(logits: np.ndarray, sampling: Sampling, seen: np.ndarray) -> np.ndarray:
    penalty = sampling.repetition_penalty
    logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits) / sampling.temperature
    weights = np.exp(logits)
    order = np.argsort(-weights)
    if sampling.top_k is not None:
        weights[order[sampling.top_k :]] = 0
    if sampling.top_p is not None:
        shares = weights / weights.sum()
        kept, mass = [], 0.0
        for token in order:
            kept.append(token)
            mass += shares[token]
            if mass >= sampling.top_p:
                break
        weights[[token for token in order if token not in kept]] = 0
    if sampling.min_p is not None:
        weights[weights < sampling.min_p * weights.max()] = 0
    return weights / weights.sum()


def test_the_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    chosen = draw(probabilities.log().expand(6, -1), uniform)
    assert chosen.tolist() == [1, 1, 3, 3, 4, 4]  # never a token of probability 0, not even at the ends


def test_temperature_zero_is_the_exact_argmax_and_needs_no_draw():
    logits = random_logits()
    assert torch.equal(Sampling(temperature=0).choose(logits, None), logits.argmax(-1))
    assert torch.equal(Sampling(top_k=1).choose(logits, torch.full((6,), 0.99).double()), logits.argmax(-1))


def test_log_probabilities_are_those_of_log_softmax():
    logits = random_logits()
    tokens = torch.tensor([0, 5, 999, 3, 2, 1])
    expected = logits.double().log_softmax(-1)[torch.arange(6), tokens]
    assert torch.allclose(log_probabilities_of(tokens, logits).double(), expected, atol=1e-5)


def test_uniforms_depend_on_seed_sample_and_prompt_alone():
    base = uniforms(3, 0, [7, 8], 50)
    assert np.array_equal(base[:20], uniforms(3, 0, [7, 8], 20))  # a longer text begins with the shorter one
    for other in (uniforms(4, 0, [7, 8], 50), uniforms(3, 1, [7, 8], 50), uniforms(3, 0, [7, 8, 0], 50)):
        assert not np.isclose(base, other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected 0"),
        ({"top_k": 0}, "top_k is 0, expected 1 or more"),
        ({"top_p": 0.0}, "top_p is 0.0, expected more than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 2.0}, "min_p is 2.0, expected between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected more than 0"),
    ],
)
def test_a_parameter_out_of_range_is_an_input_error(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_rows_with_their_own_filters_are_chosen_as_each_alone(monkeypatch):
    sorted_rows = []
    for name in ("keep_top_k", "keep_top_p"):
        own = getattr(sampling_rows, name)
        monkeypatch.setattr(
            sampling_rows, name, lambda logits, limit, own=own: (sorted_rows.append(len(logits)), own(logits, limit))[1]
        )
    wishes = [{}, {"top_p": 0.3}, {"temperature": 0}, {"top_k": 2}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.9}]
    samplings = [Sampling(**options) for options in wishes]
    logits = torch.randn(len(samplings), 500, generator=torch.manual_seed(0))
    for uniform in (0.0, 0.4, 0.999):
        rows = [sampling_rows.Row(sampling, sampling_rows.Preferences(), uniform, {}, {}) for sampling in samplings]
        draws = torch.tensor([uniform], dtype=torch.float64)
        expected = [
            sampling.choose(row.unsqueeze(0), draws).item() for sampling, row in zip(samplings, logits, strict=True)
        ]
        before = logits.clone()
        assert sampling_rows.choose(logits, rows).tolist() == expected
        assert torch.equal(logits, before)
    assert set(sorted_rows) == {2}  # a vocabulary is sorted for nobody who has not asked for it
