"""Sparsely activated experts (Jiang et al. 2024, "Mixtral of Experts", section 2.1), and what keeps them all in use."""

import torch
from torch import Tensor, nn

from stemma.layers.feed_forward import GatedFeedForward
from stemma.layers.linear import Linear


class SparseExperts(nn.Module):
    """`sum over the chosen e of softmax(router(x) of the chosen)_e * expert_e(x)`: no capacity limit, nothing dropped.

    Args:
        hidden: width. inner: width between an expert's two maps. experts: how many. chosen: how many a token meets.
    """

    def __init__(self, hidden: int, inner: int, *, experts: int, chosen: int, activation: str = "silu") -> None:
        super().__init__()
        self.chosen = chosen
        self.router = Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(
            GatedFeedForward(hidden, inner, activation=activation, bias=False) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map float [..., hidden] to the same shape; also return the router's logits, float [tokens, experts]."""
        tokens = x.flatten(0, -2)
        logits = self.router(tokens)
        best, experts = logits.topk(self.chosen, dim=-1)  # [tokens, chosen]
        weights = best.float().softmax(-1).to(x.dtype)
        # Pairs of a token and an expert, sorted by expert: each expert then reads its tokens in one piece.
        order = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=len(self.experts)).tolist()
        token = order // self.chosen
        parts = tokens.index_select(0, token).split(counts)
        # In training an expert without tokens still gets a gradient, of zeros.
        outputs = [
            expert(part)
            for expert, part in zip(self.experts, parts, strict=True)
            if len(part) or torch.is_grad_enabled()
        ]
        mixed = torch.cat(outputs) * weights.flatten()[order].unsqueeze(1)
        return torch.zeros_like(tokens).index_add_(0, token, mixed).view_as(x), logits


def load_balancing_loss(logits: Tensor, chosen: int) -> Tensor:
    """Return experts * sum_e f_e P_e, float32 scalar: `chosen` if all experts are used alike, more if they are not.

    f_e is the share of tokens that choose expert e, P_e the router's mean probability for it (Fedus et al. 2021,
    "Switch Transformers", equations 4 to 6; for more than one choice as Hugging Face's Mixtral counts them).

    Args:
        logits: float [tokens, experts], the router's. chosen: experts a token meets.
    """
    probabilities = logits.float().softmax(-1)
    return logits.shape[-1] * (expert_shares(logits, chosen) * probabilities.mean(0)).sum()


def expert_shares(logits: Tensor, chosen: int) -> Tensor:
    """Return float32 [experts]: the share of tokens that choose each expert; they sum to `chosen`."""
    counts = logits.topk(chosen, dim=-1).indices.flatten().bincount(minlength=logits.shape[-1])
    return counts.float() / len(logits)


def router_z_loss(logits: Tensor) -> Tensor:
    """Return the mean squared log of the softmax's denominator, which keeps the logits small (Zoph et al. 2022,
    "ST-MoE", equation 5). float [tokens, experts] -> float32 scalar."""
    return logits.float().logsumexp(-1).square().mean()
