"""UniLM: what each way of reading lets a token see, and what is predicted."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stemma
from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.families import FAMILIES, save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import BERTTokens
from stemma.families.unilm.model import KINDS, SEGMENTS, Kind, mask_of, seen_by_all
from stemma.families.unilm.objective import ClozeMixture, draw_spans
from stemma.layers.masks import Mask
from stemma.training.architecture import adapt_tokenizer, build_objective, expand_objective

SEPARATOR, CLS, SEP, MASK = 0, 1, 2, 3
IDS = BERTTokens(CLS, SEP, MASK, SEPARATOR, texts=["", "", "", "", *(f" w{index}" for index in range(96))])

# Row i sees column j, for `[CLS] a [SEP] b c [SEP]`.
WRITTEN_OUT = {
    "bidirectional": ["111111"] * 6,
    "left_to_right": ["100000", "110000", "111000", "111100", "111110", "111111"],
    "right_to_left": ["111111", "011111", "001111", "000111", "000011", "000001"],
    "seq2seq": ["111000", "111000", "111000", "111100", "111110", "111111"],
}


def mask_for(kinds: list[Kind], lengths: list[int], source: int, width: int) -> Mask:
    prefixes = [seen_by_all(kind, length, source) for kind, length in zip(kinds, lengths, strict=True)]
    reverse = torch.tensor([kind == "right_to_left" for kind in kinds])
    return mask_of(torch.tensor(prefixes), reverse, torch.tensor(lengths), width)


def test_the_four_masks_written_out() -> None:
    query = torch.zeros(4, 1, 6, 8)
    dense = mask_for(list(KINDS), [6] * 4, 3, 6).lower(query, query).dense
    assert dense is not None and dense.dtype == torch.bool
    for kind, row in zip(KINDS, dense[:, 0], strict=True):
        assert ["".join(str(int(cell)) for cell in line) for line in row.tolist()] == WRITTEN_OUT[kind]


def test_padding_is_seen_by_none() -> None:
    query = torch.zeros(4, 1, 8, 8)
    dense = mask_for(list(KINDS), [6] * 4, 3, 8).lower(query, query).dense
    assert dense is not None
    for kind, row in zip(KINDS, dense[:, 0], strict=True):
        assert ["".join(str(int(cell)) for cell in line) for line in row[:6, :6].tolist()] == WRITTEN_OUT[kind]
        assert not row[:6, 6:].any()


def small_model() -> BERT:
    torch.manual_seed(0)
    config = BERTConfig(
        vocabulary=100, context=64, segments=6, layers=2, hidden=24, heads=3, dropout=0.0, attention_dropout=0.0
    )
    model = BERT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm.weight" in name))
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_token_feels_what_it_may_see_and_nothing_else(kind: Kind) -> None:
    model = small_model()
    segments = torch.tensor([[SEGMENTS[kind][0]] * 3 + [SEGMENTS[kind][1]] * 3])
    for place in (1, 3, 4):
        tokens = torch.tensor([[CLS, 10, SEP, 11, 12, SEP]])
        tokens[0, place] = MASK
        before = model(tokens, segments, mask_for([kind], [6], 3, 6))[0, place]
        for changed in range(6):
            other = tokens.clone()
            other[0, changed] = 50
            moved = (model(other, segments, mask_for([kind], [6], 3, 6))[0, place] - before).abs().max() > 1e-5
            # One layer's mask, over two layers: what the tokens that it sees have seen.
            reach = {j for j in range(6) if WRITTEN_OUT[kind][place][j] == "1"}
            reach |= {j for i in reach for j in range(6) if WRITTEN_OUT[kind][i][j] == "1"}
            assert moved == (changed in reach) == (WRITTEN_OUT[kind][place][changed] == "1")


def test_segments_tell_the_ways_apart() -> None:
    model = small_model()
    tokens = torch.tensor([[CLS, 10, MASK, 11, 12, SEP]])
    mask = mask_for(["left_to_right"], [6], 0, 6)
    logits = [model(tokens, torch.full((1, 6), segment), mask) for segment in range(6)]
    assert all((logits[0] - other).abs().max() > 1e-3 for other in logits[1:])
    assert len({segment for pair in SEGMENTS.values() for segment in pair}) == 6


def test_a_prefix_read_from_left_to_right_is_what_it_is_alone() -> None:
    model = small_model()
    tokens = torch.randint(4, 100, (1, 20), generator=torch.Generator().manual_seed(1))
    segments = torch.full((1, 20), 2)
    whole = model.hidden(tokens, segments, mask_for(["left_to_right"], [20], 0, 20))
    for length in (1, 7, 19):
        alone = model.hidden(tokens[:, :length], segments[:, :length], mask_for(["left_to_right"], [length], 0, length))
        torch.testing.assert_close(whole[:, :length], alone, rtol=0, atol=1e-5)


# What is masked.


def within(count: int, probability: float, draws: int, slack: float = 0.0) -> bool:
    spread = 5 * math.sqrt(draws * probability * (1 - probability))
    return abs(count - draws * probability) <= spread + slack * draws


def test_spans_of_one_two_and_three_tokens() -> None:
    """10,000 draws in a text so long that they hardly ever meet."""
    spans = draw_spans(np.ones(2_000_000, bool), 13_000, np.random.default_rng(0))
    sizes = Counter(stop - start for start, stop in spans)
    assert sum(size * count for size, count in sizes.items()) == 13_000
    assert len(spans) == pytest.approx(10_000, rel=0.02)  # .8 * 1 + .2 * 2.5 = 1.3 tokens a span
    for size, probability in ((1, 0.8), (2, 0.1), (3, 0.1)):
        assert within(sizes[size], probability, len(spans), slack=0.002)


def test_spans_keep_to_the_candidates_and_the_count() -> None:
    rng = np.random.default_rng(1)
    candidates = rng.random(60) < 0.7
    for count in (1, 5, 30, 100):
        for _ in range(50):
            covered = [place for start, stop in draw_spans(candidates, count, rng) for place in range(start, stop)]
            assert len(set(covered)) == len(covered) == min(count, candidates.sum())
            assert candidates[covered].all()


def stretch(seed: int, documents: int = 1, length: int = 61) -> np.ndarray:
    tokens = np.random.default_rng([5, seed]).integers(4, 100, length)
    tokens[:: math.ceil(length / documents)] = SEPARATOR
    return tokens


def original(example: dict[str, np.ndarray]) -> np.ndarray:
    whole = example["tokens"].copy()
    whole[example["places"]] = example["targets"]
    return whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_of_each_kind(kind: Kind) -> None:
    objective = ClozeMixture(IDS, **{name: float(name == kind) for name in KINDS})
    stops, chosen = 0, 0
    for seed in range(300):
        tokens = stretch(seed)
        example = objective.example(tokens, np.random.default_rng(seed))
        whole = original(example)
        assert len(whole) == 60 and whole[0] == CLS and whole[-1] == SEP
        two = kind in ("bidirectional", "seq2seq")
        source = int(np.flatnonzero(whole == SEP)[0]) + 1
        assert (source < 60) == two
        text = whole[(whole != CLS) & (whole != SEP)]
        assert text.tolist() == tokens[1 : 1 + len(text)].tolist() and len(text) == (57 if two else 58)
        first, second = SEGMENTS[kind]
        assert example["segments"].tolist() == [first] * source + [second] * (60 - source)
        assert example["prefix_length"] == {"bidirectional": 60, "seq2seq": source}.get(kind, 0)
        assert bool(example["reverse"]) == (kind == "right_to_left")
        assert len(example["places"]) == 9  # 15 % of 60
        assert CLS not in example["targets"]
        stops += int(59 in example["places"])
        chosen += len(example["places"])
        assert kind == "seq2seq" or SEP not in example["targets"]
    assert (stops > 0) == (kind == "seq2seq")
    if kind == "seq2seq":
        assert within(stops, chosen / 300 / 58, 300, slack=0.05)


def test_documents_are_separated_by_sep() -> None:
    example = ClozeMixture(IDS).example(stretch(0, documents=3), np.random.default_rng(0))
    assert SEPARATOR not in original(example) and (original(example) == SEP).sum() >= 3


def test_kinds_and_what_becomes_of_the_predicted_tokens() -> None:
    objective = ClozeMixture(IDS)
    examples = [objective.example(stretch(seed), np.random.default_rng(seed)) for seed in range(3000)]
    kinds = Counter(int(example["segments"][0]) for example in examples)
    for segment, share in ((0, 1 / 3), (4, 1 / 3), (2, 1 / 6), (3, 1 / 6)):
        assert within(kinds[segment], share, 3000)
    read = np.concatenate([example["tokens"][example["places"]] for example in examples])
    targets = np.concatenate([example["targets"] for example in examples])
    assert within(int((read == MASK).sum()), 0.8 + 0.1 / 100, len(read))
    assert within(int((read == targets).sum()), 0.1 + 0.1 / 100, len(read))


def test_without_segment_ids() -> None:
    example = ClozeMixture(IDS, segment_ids=False).example(stretch(0), np.random.default_rng(0))
    assert not example["segments"].any()


def test_an_example_for_writing() -> None:
    objective, rng = ClozeMixture(IDS), np.random.default_rng(0)
    source, target = np.arange(10, 20), np.arange(30, 50)
    closing = 0
    for _ in range(500):
        example = objective.generation_example(source, target, rng)
        assert original(example).tolist() == [CLS, *source, SEP, *target, SEP]
        assert example["segments"].tolist() == [4] * 12 + [5] * 21
        assert len(example["places"]) == 14 and example["places"].min() >= 12  # 70 % of 20, none of the source
        assert example["prefix_length"] == 12
        closing += int(32 in example["places"])
    assert within(closing, 14 / 21, 500)
    assert len(objective.generation_example(source, target, rng, most_masked=5)["places"]) == 5
    assert len(objective.generation_example(source, target[:1], rng, masked=0.1)["places"]) == 1


# The loss.


def batch_of(objective: ClozeMixture, count: int) -> dict[str, Tensor]:
    """Texts of every kind and of different lengths."""
    return objective.collate(
        [
            objective.example(stretch(seed, length=33 + 5 * (seed % 4)), np.random.default_rng(seed))
            for seed in range(count)
        ]
    )


def test_loss_is_that_of_each_text_by_itself() -> None:
    objective, model = ClozeMixture(IDS), small_model()
    batch = batch_of(objective, 12)
    assert batch["reverse"].any() and not batch["reverse"].all() and len(set(batch["lengths"].tolist())) > 1
    loss, metrics = objective.loss(model, batch)
    expected, at = 0.0, 0
    for row, length in enumerate(batch["lengths"].tolist()):
        tokens, segments = batch["tokens"][row : row + 1, :length], batch["segments"][row : row + 1, :length]
        places = batch["places"] - row * batch["tokens"].shape[1]
        places = places[(places >= 0) & (places < length)]
        mask = mask_of(
            batch["prefix_lengths"][row : row + 1], batch["reverse"][row : row + 1], torch.tensor([length]), length
        )
        logits = model(tokens, segments, mask)[0, places]
        expected += F.cross_entropy(logits, batch["targets"][at : at + len(places)], reduction="sum").item()
        at += len(places)
    assert at == len(batch["targets"]) == metrics["targets"] == objective.counts(batch)["targets"]
    assert loss.item() == pytest.approx(expected / at, rel=1e-5)


def test_micro_batches_add_up() -> None:
    objective, model = ClozeMixture(IDS), small_model()
    examples = [objective.example(stretch(seed), np.random.default_rng(seed)) for seed in range(6)]
    whole = objective.collate(examples)
    totals = objective.counts(whole)
    parts = [objective.loss(model, objective.collate(examples[a:b]), totals)[0] for a, b in ((0, 1), (1, 4), (4, 6))]
    assert sum(parts).item() == pytest.approx(objective.loss(model, whole)[0].item(), rel=1e-5)


def test_shares_out_of_range() -> None:
    with pytest.raises(InputError, match="expected shares of 0 or more"):
        ClozeMixture(IDS, bidirectional=-1)
    with pytest.raises(InputError, match="expected shares of 0 or more"):
        ClozeMixture(IDS, bidirectional=0, seq2seq=0, left_to_right=0, right_to_left=0)


# The family.


def test_a_recipe_gets_its_ids_from_the_tokenizer() -> None:
    branch, tokenizer = FAMILIES["unilm"], train_tokenizer(["one network, several masks " * 30], "bpe", vocabulary=270)
    options = expand_objective(branch, {}, lambda keys: ".".join(keys))
    adapted = adapt_tokenizer(branch, options, tokenizer)
    objective = build_objective(branch, options, adapted)
    assert objective.bert_tokens.mask == adapted.id("[MASK]") and not objective.likelihood


def test_it_is_published_as_a_bert_with_six_segments(tmp_path: Path) -> None:
    import transformers

    model = small_model()
    save(model, None, tmp_path)
    theirs, info = transformers.BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and theirs.config.type_vocab_size == 6
    tokens, segments = torch.arange(4, 24).unsqueeze(0), torch.arange(20).unsqueeze(0) % 6
    expected = theirs.eval()(tokens, token_type_ids=segments).prediction_logits
    torch.testing.assert_close(stemma.load(tmp_path)(tokens, segments), expected, rtol=0, atol=1e-5)
