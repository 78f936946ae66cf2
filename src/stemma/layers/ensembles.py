"""What several teachers say together (Hinton, Vinyals and Dean 2015, section 2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stemma.layers.soft_targets import soften

Mean = Literal["arithmetic", "geometric"]


def soft_targets(
    logits: Sequence[Tensor],
    temperature: float = 1.0,
    mean: Mean = "arithmetic",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the log-probabilities of an ensemble at a temperature, float [..., classes], in float32 at least.

    "arithmetic" is the mean of the members' softened probabilities; "geometric" their renormalised geometric mean,
    which is what the mean of the logits gives.

    Args:
        logits: of each member, float [..., classes]. weights: of the members, scaled to sum to 1; default: equal.
    """
    if len(logits) == 1:
        return soften(logits[0], temperature)
    shares = torch.tensor([1.0] * len(logits) if weights is None else list(weights), dtype=torch.float64)
    shares = (shares / shares.sum()).to(logits[0].device)
    if mean == "geometric":
        total = sum(share.to(soft.dtype) * soft for share, soft in zip(shares, map(soften, logits), strict=True))
        return soften(torch.as_tensor(total), temperature)
    softened = torch.stack([soften(member, temperature) for member in logits])
    return torch.logsumexp(softened + shares.log().to(softened.dtype).view(-1, *[1] * logits[0].dim()), dim=0)
