"""Sparse experts against a loop over tokens."""

import pytest
import torch

from stemma.layers.experts import SparseExperts, expert_shares, load_balancing_loss


@pytest.mark.parametrize("chosen", [1, 2, 5])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_output_and_gradients_are_those_of_a_loop_over_tokens(tokens: int, chosen: int) -> None:
    torch.manual_seed(0)
    layer = SparseExperts(12, 20, experts=5, chosen=chosen).double()
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    output, logits = layer(x.unsqueeze(0))
    rows = []
    for row in x:
        scores = layer.router.weight @ row
        best = scores.argsort(descending=True)[:chosen]
        parts = [
            weight * layer.experts[e](row) for weight, e in zip(scores[best].softmax(0), best.tolist(), strict=True)
        ]
        rows.append(sum(parts))
    expected = torch.stack(rows)
    # The weights are a softmax in float32, whatever the model's type.
    torch.testing.assert_close(output[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, x @ layer.router.weight.T)
    values = [x, *layer.parameters()]
    ours = torch.autograd.grad(output.square().sum(), values)
    theirs = torch.autograd.grad(expected.square().sum(), values, allow_unused=True)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if other is None else other, rtol=0, atol=1e-5)


def test_shares_count_every_choice() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [9.0, 0.0, 1.0]])
    assert expert_shares(logits, 2).tolist() == [0.75, 0.75, 0.5]
    assert expert_shares(logits, 1).tolist() == [0.5, 0.25, 0.25]


def test_a_row_of_a_batch_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    layer = SparseExperts(12, 20, experts=4, chosen=2).eval()
    x = torch.randn(3, 9, 12)
    with torch.inference_mode():
        for row in range(3):
            torch.testing.assert_close(layer(x)[0][row], layer(x[row])[0], rtol=0, atol=1e-6)


def test_the_balancing_loss_undoes_a_collapse() -> None:
    """A router that sends nearly everything to two of four experts comes to use all alike; the least loss is 2."""
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 1.0
    router = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)) * 0.3
    router[:2, 0] += 2.0
    router.requires_grad_()
    before = expert_shares(x @ router.T, 2)
    assert before[:2].min() > 0.9
    for _ in range(200):
        loss = load_balancing_loss(x @ router.T, 2)
        (gradient,) = torch.autograd.grad(loss, router)
        with torch.no_grad():
            router -= 0.1 * gradient
    after = expert_shares(x @ router.T, 2)
    assert after.min() > 0.4 and after.max() < 0.6
    assert loss.item() < 2.05 < load_balancing_loss(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), 2).item()
