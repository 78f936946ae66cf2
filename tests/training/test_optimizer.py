"""AdamW: which parameters are decayed, and the update against the formula of Loshchilov and Hutter."""

import pytest
import torch
from torch import nn

from stemma.training.optimizer import adamw, clip_gradients, decay_groups, gradient_norm
from stemma.training.recipe import TrainingRecipe


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.output = nn.Linear(4, 5)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_only_matrices_are_decayed_and_a_tied_weight_counts_once():
    model = Tied()
    decayed, plain = decay_groups(p for p in model.parameters() if p.requires_grad)
    assert [tuple(p.shape) for p in decayed] == [(5, 4)]
    assert sorted(tuple(p.shape) for p in plain) == [(4,), (4,), (5,)]
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("corrected", [True, False])
def test_two_updates_equal_the_formula(corrected):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    start = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    optimizer = adamw(
        model, learning_rate=0.01, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.5, bias_correction=corrected
    )
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in start.items()}
    for step in (1, 2):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            first, second = moments[name]
            gradient = p.grad.double()
            first = 0.8 * first + 0.2 * gradient
            second = 0.9 * second + 0.1 * gradient**2
            moments[name] = first, second
            start[name] = start[name] * (1 - 0.01 * (0.5 if p.dim() == 2 else 0.0))
            first_correction, second_correction = (1 - 0.8**step, 1 - 0.9**step) if corrected else (1.0, 1.0)
            start[name] -= 0.01 * (first / first_correction) / ((second / second_correction).sqrt() + 1e-6)
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), start[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "embedding", "others"),
    [
        ({"clip": 2.5}, 3 / 2, 4 / 2),  # 3 and 4 are 5 together
        ({"clip": 5.5}, 3, 4),
        ({"clip": None}, 3, 4),
        ({"clip": 1.0, "clip_embeddings": False}, 3, 1),
        ({"clip": 4.5, "clip_embeddings": False}, 3, 4),
    ],
)
def test_gradients_are_clipped_together_or_without_those_of_embeddings(options, embedding, others):
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 1), "output": nn.Linear(1, 2, bias=False)})
    for name, parameter in model.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[0] = 3.0 if name == "embedding.weight" else 4.0
    norm = gradient_norm(model.parameters())
    assert norm == pytest.approx(5.0)
    clip_gradients(model, TrainingRecipe(steps=1, batch=1, learning_rate=1, **options), norm)
    assert float(model["embedding"].weight.grad[0]) == pytest.approx(embedding, rel=1e-5)
    assert float(model["output"].weight.grad[0]) == pytest.approx(others, rel=1e-5)
