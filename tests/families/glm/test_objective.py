"""Blank infilling as an objective: mixtures, options, the loss and its gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families import FAMILIES
from stemma.families.glm.likelihood import LeftToRight
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.objective import BlankInfilling, sample_of
from stemma.families.glm.tokens import GLMTokens, prepare_tokenizer
from stemma.layers.masks import Mask
from stemma.training.architecture import adapt_tokenizer, build_objective, expand_objective

SEP, CLS, END, MASK, SMASK, GMASK, SOP, EOP, HIDDEN = range(9)
STOP = 9  # ends a sentence
TOKENS = GLMTokens(SEP, CLS, END, MASK, SMASK, GMASK, SOP, EOP, HIDDEN, sentence_ends=frozenset({STOP}))
MANY = replace(TOKENS, masks=tuple(range(100, 150)), piece_starts=tuple(range(150, 200)))
VOCABULARY = 200


def stream(seed: int, length: int = 129, documents: int = 1) -> np.ndarray:
    rng = np.random.default_rng([7, seed])
    tokens = rng.integers(STOP, 100, length)
    tokens[:: math.ceil(length / documents)] = SEP
    return tokens


def drawn(objective: BlankInfilling, count: int, documents: int = 1) -> list[dict[str, np.ndarray]]:
    return [objective.example(stream(seed, documents=documents), np.random.default_rng(seed)) for seed in range(count)]


def test_sample_of_a_stream() -> None:
    assert sample_of(np.array([SEP, 11, 12, 13, 14]), TOKENS).tolist() == [CLS, 11, 12, 13]
    assert sample_of(np.array([10, 11, SEP, 12, 13, 14, 15]), TOKENS).tolist() == [CLS, 10, 11, END, CLS, 12]
    # A last [CLS] with nothing behind it is left out.
    assert sample_of(np.array([10, 11, SEP, 12, 13]), TOKENS).tolist() == [CLS, 10, 11, END]


def written(example: dict[str, np.ndarray]) -> list[list[int]]:
    """What stands in the blanks, in the order of Part B, rebuilt from the targets."""
    targets = example["targets"][int(example["context_length"]) :].tolist()
    pieces: list[list[int]] = [[]]
    for token in targets:
        if token == EOP:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces[:-1] if not pieces[-1] else pieces


def test_an_example_holds_the_sample_and_nothing_else() -> None:
    """Putting the pieces back into their blanks, found by the first position, gives the sample again."""
    objective = BlankInfilling(TOKENS)
    for seed in range(50):
        tokens = stream(seed, documents=3)
        example = objective.example(tokens, np.random.default_rng(seed))
        length = int(example["context_length"])
        starts = np.flatnonzero(example["positions"][1] == 1)
        places = example["positions"][0, starts].tolist()
        pieces = dict(zip(places, written(example), strict=True))
        assert len(set(places)) == len(places) and (example["tokens"][starts] == SOP).all()
        rebuilt = [
            token
            for place, blank in enumerate(example["tokens"][:length].tolist())
            for token in (pieces[place] if blank == MASK else [blank])
        ]
        assert rebuilt == sample_of(tokens, TOKENS).tolist()


def test_the_order_of_blanks_is_shuffled_unless_told_otherwise() -> None:
    def in_order(example: dict[str, np.ndarray]) -> bool:
        starts = example["positions"][0, example["positions"][1] == 1]
        return bool((np.diff(starts) > 0).all())

    assert sum(in_order(example) for example in drawn(BlankInfilling(TOKENS), 100)) <= 2
    assert all(in_order(example) for example in drawn(BlankInfilling(TOKENS, shuffle=False), 100))


def test_sentinels_number_the_blanks_in_the_order_of_part_b() -> None:
    for example in drawn(BlankInfilling(MANY, sentinel=True), 20):
        length = int(example["context_length"])
        starts = example["tokens"][np.flatnonzero(example["positions"][1] == 1)].tolist()
        assert starts == [SOP, *range(150, 149 + len(starts))]
        blanks = example["tokens"][:length]
        assert sorted(blanks[(blanks == MASK) | (blanks >= 100)].tolist()) == [MASK, *range(100, 99 + len(starts))]
        assert set(example["positions"][0, length:].tolist()) == {-1}
    with pytest.raises(InputError, match="the tokenizer numbers 0"):
        drawn(BlankInfilling(TOKENS, sentinel=True), 1)


def test_the_position_of_sentinels_is_the_last_of_the_table() -> None:
    objective, model = BlankInfilling(MANY, sentinel=True), small_model()
    batch = objective.collate(drawn(objective, 2))
    explicit = {**batch, "positions": batch["positions"].where(batch["positions"] >= 0, model.config.context)}
    assert torch.equal(objective.loss(model, batch)[0], BlankInfilling(TOKENS).loss(model, explicit)[0])


def test_kinds_are_mixed_as_asked() -> None:
    objective = BlankInfilling(TOKENS, token=5, sentence=3, document=2, task_masks=True)
    blanks = [set(example["tokens"][: int(example["context_length"])].tolist()) for example in drawn(objective, 1500)]
    for mask, share in ((MASK, 0.5), (SMASK, 0.3), (GMASK, 0.2)):
        count = sum(mask in found for found in blanks)
        assert abs(count - 1500 * share) < 5 * math.sqrt(1500 * share * (1 - share))
    assert all(len(found & {MASK, SMASK, GMASK}) == 1 for found in blanks)
    plain = drawn(BlankInfilling(TOKENS, token=5, sentence=3, document=2), 50)
    assert all(not {SMASK, GMASK} & set(example["tokens"].tolist()) for example in plain)


def test_long_spans() -> None:
    """50 to 100 % of the sample, half of them at its end and then without an end of piece."""
    examples = drawn(BlankInfilling(TOKENS, token=0, document=1, task_masks=True), 2000)
    lengths, suffixes = [], 0
    for example in examples:
        (piece,) = written(example)
        suffix = EOP not in example["targets"]
        suffixes += suffix
        assert suffix == (example["tokens"][int(example["context_length"]) - 1] == GMASK)
        lengths.append(len(piece))
    # The sample has 128 tokens, cut at the end: lengths are uniform on 64 .. 126.
    assert min(lengths) == 64 and max(lengths) == 126
    assert np.mean(lengths) == pytest.approx(95, abs=5 * 18.2 / math.sqrt(2000))
    assert abs(suffixes - 1000) < 5 * math.sqrt(500)
    several = drawn(BlankInfilling(TOKENS, token=0, document=1, task_masks=True), 100, documents=3)
    assert all(EOP not in example["targets"] and CLS not in example["targets"] for example in several)


def test_sentence_level_writes_whole_sentences() -> None:
    for example in drawn(BlankInfilling(TOKENS, token=0, sentence=1, task_masks=True), 50):
        pieces = written(example)
        assert all(STOP not in piece[:-1] for piece in pieces)
        assert sum(map(len, pieces)) >= int(0.15 * 128)


def test_extras_of_the_large_models() -> None:
    plain = drawn(BlankInfilling(TOKENS), 300)
    hidden = drawn(BlankInfilling(TOKENS, hidden_inputs=0.1), 300)
    count = total = 0
    for one, other in zip(plain, hidden, strict=True):
        assert np.array_equal(one["targets"], other["targets"])
        length = int(one["context_length"])
        changed = one["tokens"] != other["tokens"]
        assert not changed[:length].any() and (other["tokens"][changed] == HIDDEN).all()
        assert not (one["tokens"][changed] == SOP).any()
        count += int(changed.sum())
        total += len(changed) - length - int((one["tokens"] == SOP).sum())
    assert abs(count - 0.1 * total) < 5 * math.sqrt(0.09 * total)

    single = drawn(BlankInfilling(TOKENS, single_span=1.0, document=1), 300)
    assert all((example["tokens"] == SOP).sum() == 1 for example in single)
    assert np.mean([len(written(example)[0]) for example in single]) == pytest.approx(3.157, abs=0.5)

    short = drawn(BlankInfilling(TOKENS, short=1.0), 300)
    sizes = [len(example["tokens"]) - 2 * int((example["tokens"] == SOP).sum()) for example in short]
    assert min(sizes) >= 16 and max(sizes) <= 128 and 50 < np.mean(sizes) < 90


def test_an_example_is_a_function_of_stretch_and_generator() -> None:
    objective = BlankInfilling(TOKENS, token=1, sentence=1, document=1)
    for first, second in zip(drawn(objective, 20), drawn(objective, 20), strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": 0}, "token, sentence and document"),
        ({"sentence": -1}, "token, sentence and document"),
        ({"ratio": 0.6}, "ratio: 0.6"),
        ({"least_document": 0}, "least_document"),
        ({"sentinel": True, "block_positions": False}, "sentinel needs block_positions"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlankInfilling(TOKENS, **options)


def small_model() -> GLM:
    torch.manual_seed(0)
    config = GLMConfig(
        vocabulary=VOCABULARY, context=160, layers=2, hidden=24, heads=3, dropout=0.0, attention_dropout=0.0
    )
    return GLM(config)


def test_loss_is_the_mean_over_part_b() -> None:
    objective, model = BlankInfilling(TOKENS, document=0.5), small_model()
    batch = objective.collate(drawn(objective, 6))
    mask = Mask(causal=True, prefix_lengths=batch["context_lengths"])
    logits = model(batch["tokens"], batch["positions"], mask)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    loss, metrics = objective.loss(model, batch)
    count = int((batch["targets"] >= 0).sum())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["targets"] == count == objective.counts(batch)["targets"]
    assert float(metrics["nll"]) == pytest.approx(count * expected.item(), rel=1e-5)

    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-6)


def test_micro_batches_add_up_to_the_batch() -> None:
    objective, model = BlankInfilling(TOKENS), small_model()
    examples = drawn(objective, 6)
    whole = objective.collate(examples)
    totals = objective.counts(whole)
    parts = [objective.loss(model, objective.collate(examples[a:b]), totals)[0] for a, b in ((0, 1), (1, 4), (4, 6))]
    assert sum(parts).item() == pytest.approx(objective.loss(model, whole)[0].item(), rel=1e-6)


class Split:
    """What `held_out` needs of a tokenised split."""

    class _Tokens(np.ndarray):
        def read(self, start: int, stop: int) -> np.ndarray:
            return np.asarray(self[start:stop])

    def __init__(self, sizes: list[int]) -> None:
        rng = np.random.default_rng(3)
        every = STOP + rng.permutation(sum(sizes))  # no token twice: a token tells its place
        texts = [np.concatenate([[SEP], text]) for text in np.split(every, np.cumsum(sizes)[:-1])]
        self.texts = [text[1:].tolist() for text in texts]
        self.tokens = np.concatenate(texts).view(self._Tokens)
        self._ends = np.cumsum([len(text) for text in texts]).tolist()
        self.documents = len(texts)

    def bounds(self, index: int) -> tuple[int, int]:
        return ([0, *self._ends])[index], self._ends[index]


def test_held_out_examples_are_the_same_each_time_and_cover_the_split() -> None:
    objective, split = BlankInfilling(TOKENS), Split([90, 300, 4, 64])
    first, second = list(objective.held_out(split, 64, 2)), list(objective.held_out(split, 64, 2))
    assert len(first) == math.ceil(math.ceil(462 / 65) / 2)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not BlankInfilling.likelihood


def test_left_to_right_scores_every_token_once_and_in_order() -> None:
    objective, split = LeftToRight(TOKENS, task_masks=True), Split([90, 300, 4, 1, 64])
    place = {token: (number, index) for number, text in enumerate(split.texts) for index, token in enumerate(text)}
    scored = []
    for batch in objective.held_out(split, 48, 3):
        assert batch["tokens"].shape[1] <= 48 + 8
        for row in range(len(batch["tokens"])):
            length, targets = int(batch["context_lengths"][row]), batch["targets"][row]
            assert batch["tokens"][row, 0] == CLS and batch["tokens"][row, length - 1] == GMASK
            assert batch["tokens"][row, length] == SOP
            context, piece = batch["tokens"][row, 1 : length - 1].tolist(), targets[targets >= 0].tolist()
            assert len(context) in (0, 12)
            first, start = place[(context + piece)[0]]
            assert [place[token] for token in context + piece] == [
                (first, start + n) for n in range(len(context + piece))
            ]
            scored += piece
    assert sorted(scored) == sorted(place)


def test_left_to_right_is_the_chain_rule() -> None:
    """The sum over all texts of three tokens of their likelihoods is 1."""
    torch.manual_seed(0)
    tokens = GLMTokens(0, 1, 0, 2, 2, 2, 3, 4, 2)
    model = GLM(GLMConfig(vocabulary=6, context=8, layers=2, hidden=12, heads=2, vocabulary_multiple=1)).eval()
    objective = LeftToRight(tokens)
    total = 0.0
    for first in range(6):
        for second in range(6):
            examples = [
                objective._continuation(np.array([1, first, second, third]), 1)  # noqa: SLF001
                for third in range(6)
            ]
            batch = objective.collate(examples)
            targets = torch.tensor([[first, second, third] for third in range(6)])
            mask = Mask(causal=True, prefix_lengths=batch["context_lengths"])
            log_probabilities = model(batch["tokens"], batch["positions"], mask)[:, 2:5].log_softmax(-1)
            total += log_probabilities.gather(2, targets.unsqueeze(2)).sum((1, 2)).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Every branch of the tree. It runs; it runs! Does it?\n" * 30], "bpe", vocabulary=300)


@pytest.mark.parametrize("name", ["blank-infilling", "left-to-right"])
def test_a_recipe_gets_its_ids_from_the_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    branch = FAMILIES["glm"]
    options = expand_objective(branch, {"name": name}, lambda keys: ".".join(keys))
    adapted = adapt_tokenizer(branch, options, tokenizer)
    objective = build_objective(branch, options, adapted)
    assert objective.glm_tokens == GLMTokens.of(prepare_tokenizer(tokenizer))
    with pytest.raises(InputError, match="glm_tokens: unknown key"):
        expand_objective(branch, {"name": name, "glm_tokens": 3}, lambda keys: ".".join(keys))


def test_a_recipe_with_sentinels_gets_them(tokenizer: Tokenizer) -> None:
    branch = FAMILIES["glm"]
    options = expand_objective(branch, {"sentinel": True}, lambda keys: ".".join(keys))
    objective = build_objective(branch, options, adapt_tokenizer(branch, options, tokenizer))
    assert len(objective.glm_tokens.masks) == len(objective.glm_tokens.piece_starts) == 100
