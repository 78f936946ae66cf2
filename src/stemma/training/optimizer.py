"""The optimizer of a recipe; clipping; AdamW as the GPT papers use it: decoupled weight decay on matrices only."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stemma.training.adafactor import Adafactor
from stemma.training.distributed import full_tensor
from stemma.training.layer_decay import by_rate
from stemma.training.recipe import TrainingRecipe


def optimizer_of(model: nn.Module, training: TrainingRecipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over the trainable parameters of a model."""
    if training.optimizer != "adamw":
        rates = by_rate(model, training.layer_decay)
        groups = [{"params": parameters, "scale": scale} for scale, parameters in rates]
        if training.optimizer == "adafactor":
            return Adafactor(groups, learning_rate=training.learning_rate)
        start = training.accumulator
        return torch.optim.Adagrad(groups, lr=training.learning_rate, initial_accumulator_value=start)
    return adamw(
        model,
        learning_rate=training.learning_rate,
        betas=training.betas,
        epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        bias_correction=training.bias_correction,
        layer_decay=training.layer_decay,
    )


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    weight_decay: float = 0.1,
    bias_correction: bool = True,
    layer_decay: float | None = None,
) -> torch.optim.AdamW:
    """Return a fused AdamW over the trainable parameters of `model`, a tied weight counted once.

    Weight decay falls on every parameter with two or more dimensions, embeddings included (as in GPT-1's code and
    nanoGPT), and never on biases and norms, nor on what the model names in `undecayed`.

    Without `bias_correction` it is the Adam of BERT's code (google-research/bert, optimization.py): averages that start
    at 0 are used as they are, which makes the first updates small.

    Each group's "scale" is what its learning rate is to be multiplied by (see `layer_decay.by_rate`).
    """
    groups: list[dict[str, Any]] = []
    spared = [model.get_parameter(name) for name in getattr(model, "undecayed", ())]
    for scale, parameters in by_rate(model, layer_decay):
        decayed, plain = decay_groups(parameters, spared)
        groups.append({"params": decayed, "weight_decay": weight_decay, "scale": scale})
        groups.append({"params": plain, "weight_decay": 0.0, "scale": scale})
    groups = [{"lr": learning_rate * group["scale"], **group} for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
    if not bias_correction:
        # The corrections are 1 - beta^step: as if infinitely many updates had been made.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            step = torch.tensor(float("inf"), device=parameter.device)
            averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **averages}
    return optimizer


def decay_groups(
    parameters: Iterable[nn.Parameter], spared: Iterable[nn.Parameter] = ()
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that are decayed, and those that are not: with fewer than two dimensions, or `spared`."""
    parameters, never = list(parameters), {id(parameter) for parameter in spared}
    decayed = [p for p in parameters if p.dim() >= 2 and id(p) not in never]
    return decayed, [p for p in parameters if p.dim() < 2 or id(p) in never]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the norm of all gradients together, over all workers."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(full_tensor(torch.nn.utils.get_total_norm(gradients)))


def clip_gradients(model: nn.Module, training: TrainingRecipe, norm: float) -> None:
    """Shrink the gradients where the recipe says that they are too large; `norm` is that of all of them."""
    if training.clip is None:
        return
    parameters = list(model.parameters())
    if not training.clip_embeddings:
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        left_out = {parameter for embedding in embeddings for parameter in embedding.parameters()}
        parameters = [parameter for parameter in parameters if parameter not in left_out]
        norm = gradient_norm(parameters)
    if norm + 1e-6 > training.clip:  # below that it would multiply all gradients by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, torch.tensor(norm))
