"""Examples to batches of tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def stack(examples: Sequence[dict[str, np.ndarray[Any, Any]]]) -> dict[str, torch.Tensor]:
    """Stack examples with equal keys and shapes into int64 tensors [batch, ...]."""
    keys = examples[0].keys()
    return {key: torch.from_numpy(np.stack([example[key] for example in examples]).astype(np.int64)) for key in keys}
