"""The probe of a span, or a pair, in a frozen model's layers (Tenney et al. 2019, section 3.1).

Layers are mixed, each token is projected to 256 dimensions, a span's tokens are pooled by self-attention, and two
layers classify the pools of one or two spans. Several probes that see different layers are computed side by side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DROPOUT = 256, 0.3


@dataclass(frozen=True)
class View:
    """What probes see of a token.

    Args:
        mixed: the layers that each probe mixes. radius: neighbours seen on either side (a convolution).
    """

    mixed: tuple[tuple[int, ...], ...]
    radius: int = 0

    @property
    def lowest(self) -> int:
        """The first layer that is seen; likewise the last."""
        return min(min(mixed) for mixed in self.mixed)

    @property
    def highest(self) -> int:
        return max(max(mixed) for mixed in self.mixed)


def lexical(radius: int = 0) -> View:
    """The embeddings; with a radius of 1 also the neighbours' ("CNN1")."""
    return View(((0,),), radius=radius)


def top(layers: int) -> View:
    """The last of so many layers above the embeddings; likewise below."""
    return View(((layers,),))


def mix(layers: int) -> View:
    """A learned mix of all layers."""
    return View((tuple(range(layers + 1)),))


def each(layers: int) -> View:
    """A probe for each layer."""
    return View(tuple((layer,) for layer in range(layers + 1)))


def cumulative(layers: int) -> View:
    """For each layer a probe of the mix of the layers up to it (Tenney, Das and Pavlick 2019, section 3.2)."""
    return View(tuple(tuple(range(layer + 1)) for layer in range(layers + 1)))


@dataclass(frozen=True)
class Spans:
    """Which tokens the spans of a batch hold: int64 `tokens` [places], spans one behind the other, and where in them
    each span begins, int64 `starts` [spans]."""

    tokens: Tensor
    starts: Tensor


class SpanProbes(nn.Module):
    """Probes side by side; each learns as if it were alone, from weights that are the same for all.

    Args:
        view: what they see. hidden: width of a layer. sides: spans of a target. classes: labels.
    """

    def __init__(self, view: View, hidden: int, sides: int, classes: int) -> None:
        super().__init__()
        probes, layers = len(view.mixed), 1 + view.highest - view.lowest
        self.view = view
        self.mixed = [[layer - view.lowest for layer in mixed] for mixed in view.mixed]
        allowed = torch.full((probes, layers), -torch.inf)
        for probe, mixed in enumerate(self.mixed):
            allowed[probe, mixed] = 0.0
        self.allowed: Tensor
        self.register_buffer("allowed", allowed, persistent=False)
        self.mixing = nn.Parameter(torch.zeros(probes, layers))
        self.gamma = nn.Parameter(torch.ones(probes))
        seen = hidden * (1 + 2 * view.radius)
        self.projections = nn.ModuleList(Linears(probes, seen, WIDTH) for _ in range(sides))
        self.attentions = nn.ModuleList(Linears(probes, WIDTH, 1) for _ in range(sides))
        self.hidden = Linears(probes, WIDTH * sides, WIDTH)
        self.norm_weight = nn.Parameter(torch.ones(probes, 1, WIDTH))
        self.norm_bias = nn.Parameter(torch.zeros(probes, 1, WIDTH))
        self.output = Linears(probes, WIDTH, classes)

    def forward(self, states: Tensor, sides: list[Spans]) -> Tensor:
        """Return logits, float [probes, targets, classes].

        Args:
            states: float [tokens, neighbours, layers, hidden], of the tokens that spans hold: the layers from the
                view's lowest to its highest.
            sides: the first spans of all targets, and the second ones of pairs.
        """
        seen = self._seen(states)
        pooled = [
            _pooled(projection(seen), attention, spans)
            for projection, attention, spans in zip(self.projections, self.attentions, sides, strict=True)
        ]
        hidden = torch.tanh(self.hidden(torch.cat(pooled, -1)))
        hidden = F.layer_norm(hidden, (WIDTH,)) * self.norm_weight + self.norm_bias
        return self.output(F.dropout(hidden, DROPOUT, self.training))

    def shares(self) -> Tensor:
        """Return float [probes, layers]: how much of the mix each layer from the view's lowest on is."""
        return (self.mixing + self.allowed).softmax(-1)

    def _seen(self, states: Tensor) -> Tensor:
        """Return float [probes, tokens, features]."""
        if all(len(mixed) == 1 for mixed in self.mixed):  # a layer is seen as it is
            return states[:, :, [mixed[0] for mixed in self.mixed]].permute(2, 0, 1, 3).flatten(2)
        # A layer is seen as it is here too, where a mix of several is scaled.
        several = torch.tensor([len(mixed) > 1 for mixed in self.mixed], device=states.device)
        shares = self.shares() * torch.where(several, self.gamma, 1.0).unsqueeze(1)
        return (shares @ states).permute(2, 0, 1, 3).flatten(2)


class Linears(nn.Module):
    """Linear maps side by side, which begin alike: float [maps or 1, rows, inputs] to [maps, rows, outputs]."""

    def __init__(self, maps: int, inputs: int, outputs: int) -> None:
        super().__init__()
        one = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(one.weight.detach().T.expand(maps, -1, -1).clone())
        self.bias = nn.Parameter(one.bias.detach().expand(maps, 1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map float [maps, rows, inputs] to [maps, rows, outputs]."""
        return torch.baddbmm(self.bias, x, self.weight)


def _pooled(projected: Tensor, attention: nn.Module, spans: Spans) -> Tensor:
    """Return float [probes, spans, width], the attentive pool of each span, of float [probes, tokens, width]."""
    if len(spans.tokens) == len(spans.starts):  # one token each
        return projected[:, spans.tokens]
    probes, count, width = projected.shape
    scores = attention(projected).squeeze(-1)[:, spans.tokens].flatten()  # [probes * places]
    starts = _side_by_side(spans.starts, probes, len(spans.tokens))
    sizes = torch.diff(starts, append=starts.new_tensor([len(scores)]))
    span = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), sizes)
    largest = scores.new_full((len(starts),), -torch.inf).scatter_reduce(0, span, scores.detach(), "amax")
    weights = (scores - largest[span]).exp()
    weights = weights / weights.new_zeros(len(starts)).index_add(0, span, weights)[span]
    tokens = _side_by_side(spans.tokens, probes, count)
    pooled = F.embedding_bag(tokens, projected.flatten(0, 1), starts, mode="sum", per_sample_weights=weights)
    return pooled.view(probes, -1, width)


def _side_by_side(places: Tensor, probes: int, size: int) -> Tensor:
    """Return the places in as many stretches of `size`, one behind the other, int64 [probes * places]."""
    return (places + size * torch.arange(probes, device=places.device).unsqueeze(1)).flatten()
