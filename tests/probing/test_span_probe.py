"""The probe beside a plain one, a target at a time; and probes side by side beside each alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stemma.probing import span_probe
from stemma.probing.span_probe import SpanProbes, Spans, View

HIDDEN, LAYERS, CLASSES = 6, 3, 4


def plain(probes: SpanProbes, probe: int, layers: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """The logits of one target, float [classes], as the paper says it; layers: float [layers, tokens, hidden]."""
    mixed = probes.view.mixed[probe]
    weights = probes.mixing[probe, [layer - probes.view.lowest for layer in mixed]].softmax(0)
    gamma = probes.gamma[probe] if len(mixed) > 1 else 1.0
    tokens = gamma * sum(share * layers[layer] for share, layer in zip(weights, mixed, strict=True))
    pools = []
    for (start, end), projection, attention in zip(spans, probes.projections, probes.attentions, strict=True):
        projected = tokens[start:end] @ projection.weight[probe] + projection.bias[probe]
        scores = projected @ attention.weight[probe] + attention.bias[probe]
        pools.append((scores.softmax(0) * projected).sum(0))
    hidden = torch.tanh(torch.cat(pools) @ probes.hidden.weight[probe] + probes.hidden.bias[probe, 0])
    hidden = torch.nn.functional.layer_norm(hidden, (256,), probes.norm_weight[probe, 0], probes.norm_bias[probe, 0])
    return hidden @ probes.output.weight[probe] + probes.output.bias[probe, 0]


def made(view: View, sides: int) -> SpanProbes:
    torch.manual_seed(0)
    probes = SpanProbes(view, HIDDEN, sides, CLASSES).eval()
    with torch.no_grad():
        for weight in probes.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return probes


def spans_of(targets: list[list[tuple[int, int]]]) -> list[Spans]:
    sides = []
    for side in zip(*targets, strict=True):
        tokens = torch.tensor([token for start, end in side for token in range(start, end)])
        starts = np.cumsum([0, *(end - start for start, end in side[:-1])])
        sides.append(Spans(tokens, torch.tensor(starts)))
    return sides


@pytest.mark.parametrize(
    "view",
    [span_probe.mix(2), span_probe.cumulative(2), span_probe.each(2), span_probe.top(2), span_probe.lexical()],
)
@pytest.mark.parametrize(
    "targets",
    [[[(0, 1)], [(2, 3)], [(1, 2)]], [[(0, 3)], [(2, 4)], [(4, 5)]], [[(0, 2), (3, 5)], [(4, 5), (0, 4)]]],
    ids=["words", "spans", "pairs"],
)
def test_logits_are_those_of_a_plain_probe(view: View, targets: list) -> None:
    probes = made(view, len(targets[0]))
    layers = torch.randn(LAYERS, 5, HIDDEN)
    seen = layers[view.lowest : view.highest + 1].transpose(0, 1).unsqueeze(1)
    logits = probes(seen, spans_of(targets))
    for probe in range(len(view.mixed)):
        expected = torch.stack([plain(probes, probe, layers, target) for target in targets])
        torch.testing.assert_close(logits[probe], expected, atol=1e-5, rtol=1e-4)


def test_neighbours_are_a_longer_input() -> None:
    wide, inner = made(span_probe.lexical(radius=1), 1), made(span_probe.lexical(), 1)
    states = torch.randn(5, 3, 1, HIDDEN)
    inner.projections = wide.projections
    inner.attentions, inner.hidden, inner.output = wide.attentions, wide.hidden, wide.output
    inner.norm_weight, inner.norm_bias = wide.norm_weight, wide.norm_bias
    spans = spans_of([[(0, 2)], [(3, 5)]])
    torch.testing.assert_close(wide(states, spans), inner(states.flatten(1)[:, None, None], spans))


def test_gradients_of_pools_are_exact() -> None:
    probes = made(span_probe.cumulative(1), 2).double()
    states = torch.randn(5, 1, 2, HIDDEN, dtype=torch.float64, requires_grad=True)
    spans = spans_of([[(0, 2), (3, 5)], [(4, 5), (0, 4)]])
    assert torch.autograd.gradcheck(lambda values: probes(values, spans), (states,))


def test_probes_begin_alike_and_shares_cover_what_is_allowed() -> None:
    probes = SpanProbes(span_probe.cumulative(2), HIDDEN, 1, CLASSES)
    assert all(torch.equal(weight[0], weight[2]) for weight in probes.parameters())
    torch.testing.assert_close(
        probes.shares(), torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]), rtol=1e-6, atol=1e-6
    )
