"""Whether two models have the same weights."""

import hashlib
from typing import Any

import torch
from torch import nn


def hash_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, of their names and their bytes."""
    state: Any = hashlib.sha256()
    for name, weight in model.state_dict().items():
        state.update(name.encode())
        state.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return str(state.hexdigest())
