"""The objective with experts: what is added to the loss, what is reported, and that balancing balances."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.mistral.objective import RoutedCausal

from .reference import some_tokens

MIXTRAL = MistralConfig(
    vocabulary=61, context=32, layers=2, hidden=24, heads=4, key_value_heads=2, feed_forward=20, windows=(None,),
    experts=4,
)  # fmt: skip


def model_of(config: MistralConfig = MIXTRAL) -> Mistral:
    torch.manual_seed(0)
    return Mistral(config).double()


def some_batch(rows: int = 6) -> dict[str, torch.Tensor]:
    tokens = some_tokens(17, rows, 61)
    targets = tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, : 2 * row] = -100
    return {"tokens": tokens[:, :-1], "targets": targets, "document_ids": (tokens[:, :-1] == 0).cumsum(1)}


def test_the_loss_is_the_likelihoods_and_the_routers() -> None:
    """Against the formulas written out: Switch Transformers (4) to (6) a layer, ST-MoE (5)."""
    model, batch = model_of(), some_batch()
    del batch["document_ids"]
    loss, sums = RoutedCausal(0, load_balancing=0.3, router_z=0.02).loss(model, batch)
    nll = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    balances, squares, entropies, usages = [], [], [], []
    for logits in model.hidden_and_routing(batch["tokens"])[1]:
        logits = logits.detach()
        assert logits.shape == (96, 4)
        probabilities = logits.softmax(-1)
        picked = probabilities.argsort(-1, descending=True)[:, :2]
        f = torch.stack([(picked == expert).any(-1).double().mean() for expert in range(4)])
        balances.append(4 * (f * probabilities.mean(0)).sum())
        squares.append(logits.exp().sum(-1).log().square().mean())
        entropies.append(-(probabilities * probabilities.log()).sum(-1).mean())
        usages.append(f / 2)
    expected = nll + 0.3 * sum(balances) / 2 + 0.02 * sum(squares) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(sums["nll"]) == pytest.approx(nll.item() * int(sums["targets"]), rel=1e-6)
    routed = int(sums["routed"])
    assert routed == 96
    assert float(sums["balance/routed"]) == pytest.approx(96 * float(sum(balances)) / 2, rel=1e-5)
    assert float(sums["router_entropy/routed"]) == pytest.approx(96 * float(sum(entropies)) / 2, rel=1e-5)
    for expert in range(4):
        share = float(sum(usages)[expert]) / 2
        assert float(sums[f"expert_{expert}/routed"]) == pytest.approx(96 * share, rel=1e-5)


def test_without_experts_it_is_the_plain_objective() -> None:
    model, batch = model_of(replace(MIXTRAL, experts=0)), some_batch()
    loss, sums = RoutedCausal(0).loss(model, batch)
    assert sums.keys() == {"nll", "targets"}
    assert loss.item() == pytest.approx(float(sums["nll"]) / int(sums["targets"]), rel=1e-6)


def test_floating_point_operations_are_those_of_the_experts_that_a_token_meets() -> None:
    dense = replace(MIXTRAL, experts=0, feed_forward=40)  # as wide as two of the experts
    plain, routed = (RoutedCausal(0).training_flops(Mistral(config), 16) for config in (dense, MIXTRAL))
    assert routed - plain == 6 * 16 * 2 * 24 * 4  # the routers
    seen = {
        window: RoutedCausal(0).training_flops(Mistral(replace(dense, windows=(window,))), 16) for window in (4, 16)
    }
    assert seen[16] == plain
    # Pairs of tokens: 136 in all, 1 + 2 + 3 + 13 * 4 within the window.
    assert seen[16] - seen[4] == 12 * 24 * 2 * (136 - 58)


def test_micro_batches_without_balancing_add_up_to_the_batch() -> None:
    objective, model, batch = RoutedCausal(0, load_balancing=0.0, router_z=0.1), model_of(), some_batch()
    loss, _ = objective.loss(model, batch)
    loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parts = [
        dict(zip(batch, part, strict=True)) for part in zip(*(x.split([1, 5]) for x in batch.values()), strict=True)
    ]
    counts = [objective.counts(part) for part in parts]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert totals == objective.counts(batch)
    shares = [objective.loss(model, part, totals)[0] for part in parts]
    sum(shares).backward()
    assert float(sum(shares).detach()) == pytest.approx(loss.item(), rel=1e-6)
    for parameter, whole in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, whole, rtol=0, atol=1e-6 * float(whole.abs().max()) + 1e-12)
