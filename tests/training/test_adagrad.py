"""Adagrad as an optimizer of recipes: its sums begin where the recipe says."""

import pytest
import torch
from torch import nn

from stemma.training.optimizer import optimizer_of
from stemma.training.recipe import TrainingRecipe


def test_steps_are_divided_by_the_root_of_all_squares() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    recipe = TrainingRecipe(steps=1, batch=1, learning_rate=0.2, optimizer="adagrad", accumulator=1.0)
    optimizer = optimizer_of(model, recipe)
    expected, squares = 2.0, 1.0
    for gradient in (0.5, -3.0, 1.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        squares += gradient**2
        expected -= 0.2 * gradient / squares**0.5
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
