"""AdamW as the GPT papers use it: decoupled weight decay on matrices only."""

import torch
from torch import nn


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    weight_decay: float = 0.1,
    bias_correction: bool = True,
) -> torch.optim.AdamW:
    """Return a fused AdamW over the trainable parameters of `model`, a tied weight counted once.

    Weight decay falls on every parameter with two or more dimensions, embeddings included (as in GPT-1's code and
    nanoGPT), and never on biases and norms.

    Without `bias_correction` it is the Adam of BERT's code (google-research/bert, optimization.py): averages that start
    at 0 are used as they are, which makes the first updates small.
    """
    decayed, plain = decay_groups(model)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
    if not bias_correction:
        # The corrections are 1 - beta^step: as if infinitely many updates had been made.
        for parameter in decayed + plain:
            step = torch.tensor(float("inf"), device=parameter.device)
            averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **averages}
    return optimizer


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters of `model` that are decayed, and those that are not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in trainable if p.dim() >= 2], [p for p in trainable if p.dim() < 2]
