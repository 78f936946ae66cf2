"""The denoising objectives: worked examples of each, and that a step's loss does not depend on how it is cut up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemma.errors import InputError
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.objective import PrefixLM, SpanCorruption

END, VOCABULARY, SENTINELS = 1, 61, (60, 59, 58, 57)
TOKENS = np.arange(10, 20)


def objective(kind=SpanCorruption, **options) -> SpanCorruption:
    return kind(separator=END, vocabulary=VOCABULARY, sentinels=SENTINELS, **options)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def small_model(**options) -> T5:
    torch.manual_seed(0)
    config = T5Config(vocabulary=VOCABULARY, hidden=24, heads=3, head_dim=8, layers=2, feed_forward=32, **options)
    return T5(config).double()


def test_the_worked_example():
    """Ten tokens make one span: the source is `a ... h <x0> </s>`, the target `<x0> i j </s>`."""
    example = objective().example(np.append(TOKENS, 33), rng())  # the token that packing adds is left out
    assert example["source"].tolist() == [*range(10, 18), 60, END]
    assert example["target"].tolist() == [60, 18, 19, END]


def test_sentinels_fall_and_there_is_no_final_one():
    example = objective(density=0.5, mean_span=2.0).corrupted(TOKENS, rng(5))
    source, target = example["source"].tolist(), example["target"].tolist()
    assert [token for token in source if token >= 57] == [token for token in target if token >= 57] == [60, 59]
    assert source[0] == 10 and source[-2] >= 57  # begins kept, ends in noise
    assert target[0] == 60 and target[-2] == 19
    # source and target together are the text
    pieces = {60: [], 59: []}
    for token in target[:-1]:
        if token in pieces:
            current = pieces[token]
        else:
            current.append(token)
    filled = [part for token in source[:-1] for part in pieces.get(token, [token])]
    assert filled == TOKENS.tolist()


def test_an_example_is_a_function_of_its_generator():
    one, other = (objective(density=0.4).corrupted(np.arange(10, 40), rng(3)) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)
    assert (one["source"] != objective(density=0.4).corrupted(np.arange(10, 40), rng(4))["source"]).any()


def test_the_variants_of_the_paper():
    prefix = objective(PrefixLM).corrupted(TOKENS, rng())
    cut = len(prefix["source"]) - 1
    assert 0 < cut < 10
    assert prefix["source"].tolist() == [*TOKENS[:cut], END] and prefix["target"].tolist() == [*TOKENS[cut:], END]

    text = [*TOKENS, END]
    mass = objective(noise="tokens", source="mask", target="whole", density=0.5).corrupted(TOKENS, rng())
    assert mass["target"].tolist() == text and len(mass["source"]) == 11
    changed = mass["source"][:-1] != TOKENS
    assert 0 < changed.sum() < 10 and set(mass["source"][:-1][changed]) == {60}

    bert = objective(noise="tokens", source="mask-or-random", target="whole", density=0.9, random=1.0)
    source = bert.corrupted(np.full(500, 10), rng())["source"][:-1]
    assert source.min() == 3 and source.max() == VOCABULARY - 1

    dropped = objective(noise="tokens", source="drop", target="drop", density=0.5).corrupted(TOKENS, rng())
    assert sorted([*dropped["source"][:-1], *dropped["target"][:-1]]) == TOKENS.tolist()

    deshuffling = objective(noise="all", source="shuffle", target="whole").corrupted(TOKENS, rng())
    assert sorted(deshuffling["source"][:-1]) == TOKENS.tolist() != deshuffling["source"][:-1].tolist()
    assert deshuffling["target"].tolist() == text

    language_model = objective(noise="all", source="drop", target="drop").corrupted(TOKENS, rng())
    assert language_model["source"].tolist() == [END] and language_model["target"].tolist() == text


@pytest.mark.parametrize(("option", "value"), [("density", 0.0), ("density", 1.0), ("mean_span", 0.5), ("random", 1.5)])
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=f"objective.{option}: {value}"):
        objective(**{option: value})


def ragged_batch() -> dict[str, torch.Tensor]:
    kind = objective(noise="tokens", source="drop", target="drop", density=0.4)
    return kind.collate([kind.corrupted(np.arange(5, 25 - 3 * row), rng(row)) for row in range(6)])


def test_examples_of_one_length_have_no_padding():
    batch = objective().collate([objective().example(np.append(TOKENS, 0), rng(seed)) for seed in range(3)])
    assert set(batch) == {"source", "target"} and batch["source"].shape == (3, 10) and batch["target"].shape == (3, 4)


def test_collated_examples_keep_their_lengths():
    examples = [
        {"source": np.array([5, 6, 7]), "target": np.array([8])},
        {"source": np.array([9]), "target": np.arange(2)},
    ]
    batch = objective().collate(examples)
    assert batch["source"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch["source_padding"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["target"].tolist() == [[8, -100], [0, 1]]


def test_loss_is_the_mean_over_real_targets():
    model, batch = small_model(), ragged_batch()
    loss, metrics = objective().loss(model, batch)
    logits = model(batch["source"], batch["target"], source_padding=batch["source_padding"])
    expected = F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["targets"] == objective().counts(batch)["targets"] == int((batch["target"] >= 0).sum())
    assert float(metrics["nll"]) == pytest.approx(float(metrics["targets"]) * expected.item(), rel=1e-6)


@pytest.mark.parametrize("cuts", [[1, 5], [2, 2, 2], [1] * 6])
def test_micro_batches_add_up_to_the_batch(cuts):
    model, batch = small_model(), ragged_batch()
    kind = objective()
    loss, _ = kind.loss(model, batch)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    totals, total = kind.counts(batch), 0.0
    for part in zip(*(tensor.split(cuts) for tensor in batch.values()), strict=True):
        share, _ = kind.loss(model, dict(zip(batch, part, strict=True)), totals)
        share.backward()
        total += share.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-6 * scale + 1e-12)


class Split:
    """Documents as `scoring_windows` and held-out evaluation see them."""

    def __init__(self, *documents: list[int]) -> None:
        self.documents = len(documents)
        stream = np.concatenate(documents)
        self.ends = np.cumsum([len(document) for document in documents])
        self.tokens = SimpleNamespace(read=lambda start, stop: stream[start:stop].astype(np.uint16))

    def bounds(self, index: int) -> tuple[int, int]:
        return int(self.ends[index - 1]) if index else 0, int(self.ends[index])


def test_held_out_text_is_used_once_and_always_alike():
    split = Split([1, *range(10, 33)], [1, 40], [1], [1, *range(41, 50)])  # 37 tokens
    whole = objective(noise="tokens", source="mask", target="whole")
    batches = list(whole.held_out(split, 8, 2))
    assert [tuple(batch["target"].shape) for batch in batches] == [(2, 9), (2, 9), (1, 6)]
    text = [token for batch in batches for row in batch["target"].tolist() for token in row[:-1]]
    assert text == [1, *range(10, 33), 1, 40, 1, 1, *range(41, 50)]
    for one, other in zip(batches, whole.held_out(split, 8, 2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not whole.likelihood


def test_flops_of_an_example_are_counted_by_what_each_side_meets():
    model = small_model(tie_output=False)
    inner, hidden, ff = 24, 24, 32
    encoder = 2 * (4 * inner * hidden + 2 * hidden * ff) + 32 * 3
    decoder = 2 * (6 * inner * hidden + 2 * hidden * ff) + 32 * 3  # without keys and values of the source
    source, target = 10, 4
    products = source * (encoder + 4 * inner * hidden) + target * (decoder + hidden * VOCABULARY)
    pairs = 2 * source**2 + 2 * (target**2 / 2 + source * target)
    assert objective().training_flops(model, 10) == pytest.approx(6 * products + 12 * inner * pairs)
