"""DPO: its loss by its formula, and the reference as it was."""

import math
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import model_of, tokenizer_of

from stemma import families
from stemma.alignment.comparisons import Comparison
from stemma.alignment.conversations import Renderer
from stemma.alignment.dpo import (
    Preferences,
    dpo_loss,
    in_pairs,
    measure_preferences,
    refer,
    response_log_probabilities,
)
from stemma.alignment.ranking import encode
from stemma.alignment.reading import reading_of
from stemma.training.progress import Silent

PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
ORACLE = PUBLISHED / "reference/ppo/ppo.safetensors"
COMPARISONS = [
    Comparison("the quick", (" brown fox", " dog in Paris", " cat"), ((0, 1), (2, 1))),
    Comparison("who sees", (" the lazy dog", " a"), ((1, 0),)),
]


def parts(family="gpt", **options):
    model, tokenizer = model_of(family), tokenizer_of(family)
    reading = reading_of(model, tokenizer)
    examples, _, _ = encode(COMPARISONS, Renderer(model, tokenizer, reading.end), reading)
    return model, tokenizer, Preferences(reading, **options), in_pairs(examples)


@pytest.mark.skipif(not ORACLE.is_file(), reason="the numbers are not at hand")
def test_the_loss_and_its_gradient_are_the_reference_numbers():
    oracle = load_file(ORACLE)
    policy, reference = (
        torch.stack([oracle[f"dpo.{who}_{which}"] for which in ("chosen", "rejected")], 1) for who in ("policy", "ref")
    )
    policy.requires_grad_()
    loss = dpo_loss(policy, reference, beta=0.1).mean()
    loss.backward()
    torch.testing.assert_close(loss, oracle["dpo.loss"].reshape(()), atol=1e-12, rtol=0)
    for column, which in enumerate(("chosen", "rejected")):
        torch.testing.assert_close(policy.grad[:, column], oracle[f"dpo.grad_policy_{which}"], atol=1e-12, rtol=0)


def test_the_loss_by_its_formula():
    policy = torch.tensor([[-1.0, -4.0], [-6.0, -2.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -2.0], [-3.0, -2.5]], dtype=torch.float64)
    margins = [3.0, -3.5]
    sigmoid = [1 / (1 + math.exp(-0.2 * margin)) for margin in margins]
    expected = [-math.log(one) for one in sigmoid]
    assert dpo_loss(policy, reference, beta=0.2).tolist() == pytest.approx(expected)
    smooth = [-0.9 * math.log(one) - 0.1 * math.log(1 - one) for one in sigmoid]
    assert dpo_loss(policy, reference, beta=0.2, label_smoothing=0.1).tolist() == pytest.approx(smooth)
    ipo = [(margin - 2.5) ** 2 for margin in margins]
    assert dpo_loss(policy, reference, beta=0.2, loss="ipo").tolist() == pytest.approx(ipo)
    assert dpo_loss(policy, policy).tolist() == [math.log(2)] * 2


def test_log_probabilities_are_those_of_transformers(tmp_path):
    model, tokenizer, objective, pairs = parts()
    families.save(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    sums, means = [], []
    for pair in pairs:
        for text in pair["texts"]:
            tokens = torch.from_numpy(text["tokens"])
            with torch.no_grad():
                scores = theirs(tokens[None]).logits[0].log_softmax(-1)
            each = [float(scores[place, tokens[place + 1]]) for place in text["read"][:-1].tolist()]
            sums.append(sum(each))
            means.append(sum(each) / len(each))
    batch = objective.collate(pairs)
    found = response_log_probabilities(model, objective.reading, batch)
    assert found.tolist() == pytest.approx(sums, abs=1e-4)
    found = response_log_probabilities(model, objective.reading, batch, mean=True)
    assert found.tolist() == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt", "mistral", "glm", "t5"])
def test_a_step_raises_the_better_response_above_the_worse(family, tmp_path):
    model, _, objective, pairs = parts(family)
    refer(model, objective, pairs, tmp_path / "reference.safetensors", 2, Silent())
    before = measure_preferences(model, objective, pairs, 2)
    assert before.loss == pytest.approx(math.log(2), abs=1e-6) and before.metrics["margin"] == pytest.approx(
        0, abs=1e-6
    )
    loss, sums = objective.loss(model, objective.collate(pairs))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and sums["targets"] == 3
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 * parameter.grad
    after = measure_preferences(model, objective, pairs, 2)
    assert after.loss < before.loss
    gains = after.metrics["chosen_gain"] - after.metrics["rejected_gain"]
    assert after.metrics["margin"] == pytest.approx(0.1 * gains, rel=1e-4) and gains > 0


def test_the_reference_is_computed_once_and_anew_for_another_model(tmp_path, monkeypatch):
    model, _, objective, pairs = parts()
    file = tmp_path / "reference.safetensors"
    refer(model, objective, pairs, file, 2, Silent())
    first = [pair["reference"] for pair in pairs]
    calls = []
    original = Preferences.log_probabilities
    monkeypatch.setattr(Preferences, "log_probabilities", lambda *given: calls.append(1) or original(*given))
    refer(model, objective, pairs, file, 2, Silent())
    assert not calls and all(torch.equal(pair["reference"], one) for pair, one in zip(pairs, first, strict=True))
    with torch.no_grad():
        model.final_norm.bias.add_(1)
    refer(model, objective, pairs, file, 2, Silent())
    assert calls and not torch.equal(pairs[0]["reference"], first[0])
    refer(model, Preferences(objective.reading, loss_kind="ipo"), pairs, file, 2, Silent())
    assert all(abs(float(number)) < 20 for number in pairs[0]["reference"])
