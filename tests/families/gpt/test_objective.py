"""The causal objective: what is predicted, and that a step's loss does not depend on how it is cut up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.gpt.objective import Causal

SEPARATOR = 0


def small_model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocabulary=61, context=16, layers=2, hidden=24, heads=3)).double()


def some_batch(rows: int = 6) -> dict[str, torch.Tensor]:
    """Rows with very different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(61, (rows, 17), generator=generator)
    targets = tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, : 3 * row] = -100
    ids = (tokens[:, :-1] == SEPARATOR).cumsum(1)
    return {"tokens": tokens[:, :-1], "targets": targets, "document_ids": ids}


def gradients(model: GPT) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def test_example_predicts_the_next_token_within_documents() -> None:
    tokens = np.array([7, 8, 0, 3, 4, 0, 5, 6])
    example = Causal(separator=0).example(tokens, np.random.default_rng(0))
    assert example["tokens"].tolist() == [7, 8, 0, 3, 4, 0, 5]
    assert example["targets"].tolist() == [8, 0, 3, 4, 0, 5, 6]
    assert example["document_ids"].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert "document_ids" not in Causal(0, separate_documents=False).example(tokens, np.random.default_rng(0))


def test_loss_is_the_mean_over_targets() -> None:
    model, batch = small_model(), some_batch()
    del batch["document_ids"]
    loss, metrics = Causal(SEPARATOR).loss(model, batch)
    expected = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["targets"] == sum(16 - 3 * row for row in range(6)) == 51
    assert float(metrics["nll"]) == pytest.approx(51 * expected.item(), rel=1e-6)


@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_micro_batches_add_up_to_the_batch(cuts: list[int]) -> None:
    objective, model, batch = Causal(SEPARATOR), small_model(), some_batch()
    loss, _ = objective.loss(model, batch)
    loss.backward()
    expected = gradients(model)

    parts = [dict(zip(batch, part, strict=True)) for part in zip(*(x.split(cuts) for x in batch.values()), strict=True)]
    totals = {"targets": sum(objective.counts(part)["targets"] for part in parts)}
    total = torch.zeros(())
    for part in parts:
        share, _ = objective.loss(model, part, totals)
        share.backward()
        total += share.detach()
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    for ours, whole in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-6 * float(whole.abs().max()) + 1e-12)


def test_a_batch_without_targets_gives_zero() -> None:
    model, batch = small_model(), some_batch(2)
    batch["targets"][:] = -100
    loss, metrics = Causal(SEPARATOR).loss(model, batch)
    assert (loss.item(), float(metrics["nll"]), metrics["targets"]) == (0.0, 0.0, 0)
