"""Next-token prediction for models whose experts must all be kept in use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stemma.families.gpt.objective import IGNORED, Causal
from stemma.families.mistral.model import Mistral
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.experts import expert_shares, load_balancing_loss, router_z_loss
from stemma.layers.masks import Mask


@dataclass(frozen=True)
class RoutedCausal(Causal):
    """GPT's causal objective; with experts, plus `load_balancing` and `router_z` times the means over the layers of
    `load_balancing_loss` and `router_z_loss`.

    Each micro-batch is balanced by itself. transformers counts the experts of all layers together, where one layer's
    collapse can hide behind another's use; here each layer is balanced.

    Args:
        load_balancing: transformers' default. router_z: ST-MoE's.
    """

    load_balancing: float = 0.001
    router_z: float = 0.001

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many `targets` the batch has, and how many tokens are `routed`."""
        return {**super().counts(batch), "routed": batch["tokens"].numel()}

    def training_flops(self, model: Mistral, length: int) -> float:
        """Estimate the floating-point operations of a step per sequence: of the experts, those that a token meets.

        6 for each parameter that a token meets, and 12 * heads * head_dim for each pair of tokens within the windows.
        """
        config = model.config
        matrices = [(name, weight.numel()) for name, weight in model.blocks.named_parameters() if weight.dim() > 1]
        share = config.experts_per_token / config.experts if config.experts else 1.0
        met = sum(count * (share if ".experts." in name else 1.0) for name, count in matrices)
        met += model.output_weight.numel()
        windows = [min(config.window(layer) or length, length) for layer in range(config.layers)]
        pairs = sum(window * (window + 1) // 2 + (length - window) * window for window in windows)
        return 6.0 * met * length + 12.0 * config.heads * config.head_size * pairs

    def loss(  # type: ignore[override]
        self, model: Mistral, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood in nats and what the router costs; and sums to report.

        Args: as those of `Causal.loss`. The sums with experts, means over tokens and layers: `balance` and `router_z`
            (the losses), `router_entropy` (of a token's probabilities, in nats), `usage_entropy` (of the experts'
            shares in a layer; log(experts) if all are used alike) and `expert_N`, the share of choices that fall on it.
        """
        counts = self.counts(batch)
        totals = totals or counts
        divisor = max(totals["targets"], 1)
        mask = Mask(causal=True, document_ids=batch.get("document_ids"))
        hidden, routings = model.hidden_and_routing(batch["tokens"], mask=mask)
        targets = batch["targets"].flatten()
        nll = linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, targets, divisor=divisor)
        sums = {"nll": nll.detach() * divisor, "targets": (targets != IGNORED).sum()}
        if not routings:
            return nll, sums
        chosen, routed = model.config.experts_per_token, counts["routed"]
        balance = torch.stack([load_balancing_loss(routing, chosen) for routing in routings]).mean()
        z = torch.stack([router_z_loss(routing) for routing in routings]).mean()
        cost = (self.load_balancing * balance + self.router_z * z) * (routed / max(totals["routed"], 1))
        measured = {"balance": balance.detach(), "router_z": z.detach(), **_usage(routings, chosen)}
        sums |= {f"{name}/routed": value * routed for name, value in measured.items()}
        return nll + cost, {**sums, "routed": torch.tensor(routed)}


@torch.no_grad()
def _usage(routings: Sequence[Tensor], chosen: int) -> dict[str, Tensor]:
    shares = torch.stack([expert_shares(routing, chosen) / chosen for routing in routings])  # [layers, experts]
    probabilities = torch.stack(list(routings)).float().softmax(-1)
    entropies = {"router_entropy": _entropy(probabilities), "usage_entropy": _entropy(shares)}
    return entropies | {f"expert_{number}": share for number, share in enumerate(shares.mean(0))}


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1).mean()
