"""The bidirectional objective against two language models run by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemma.data.token_arrays import FileArray
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.elmo.objective import BidirectionalLM
from stemma.families.elmo.words import spell

WORDS = ("</S>", "<S>", "<UNK>", "the", "dog", "sees", "rare", "rarer", "\n")
SEPARATOR, LINE_END, PREDICTED = 0, 8, 6


def small_model(architecture: Any = "lstm", dropout: float = 0.0) -> ELMo:
    torch.manual_seed(0)
    config = ELMoConfig(
        vocabulary=len(WORDS), predicted=PREDICTED, characters=4, filters=((1, 6), (2, 6)), highways=1, longest_word=9,
        projection=8, cell=12, cell_clip=0.8, architecture=architecture, heads=2, feed_forward=16, bottleneck=6,
        dropout=dropout,
    )  # fmt: skip
    return ELMo(config)


def objective(samples: int | None = None) -> BidirectionalLM:
    return BidirectionalLM(WORDS, SEPARATOR, samples)


@torch.no_grad()
def by_hand(model: ELMo, row: list[int], backward: bool) -> list[float]:
    """The negative log-likelihoods of one direction of one row: what is read, and what is predicted from it."""
    begin, end = model.boundaries()
    mark = end if backward else begin
    row = row[::-1] if backward else row
    read = [mark if token in (0, 8) else model.words(torch.from_numpy(spell([WORDS[token]], 9)))[0] for token in row]
    nothing = torch.zeros(len(row) - 1, 8)
    both = torch.stack([nothing, torch.stack(read[:-1])] if backward else [torch.stack(read[:-1]), nothing])
    outputs, _ = model.context(both.unsqueeze(1), torch.tensor([len(row) - 1]))
    assert model.output is not None
    logits = model.output(outputs[-1][int(backward), 0])
    losses = []
    for step, (now, following) in enumerate(zip(row, row[1:], strict=False)):
        if {now, following} <= {0, 8}:
            continue  # an empty sentence
        target = (1 if backward else 0) if following in (0, 8) else following if following < PREDICTED else 2
        losses.append(float(F.cross_entropy(logits[step], torch.tensor(target))))
    return losses


ROWS = [[0, 3, 4, 8, 0, 6], [4, 5, 3, 7, 8, 3]]


@pytest.mark.parametrize("architecture", ["lstm", "transformer", "gated-cnn"])
def test_loss_is_the_mean_of_both_directions(architecture: str) -> None:
    model = small_model(architecture)
    loss, sums = objective().loss(model, {"tokens": torch.tensor(ROWS)})
    ahead = [value for row in ROWS for value in by_hand(model, row, backward=False)]
    behind = [value for row in ROWS for value in by_hand(model, row, backward=True)]
    assert len(ahead) == len(behind) == sums["targets"] == objective().counts({"tokens": torch.tensor(ROWS)})["targets"]
    assert loss.item() == pytest.approx((sum(ahead) + sum(behind)) / 2 / len(ahead), rel=1e-5)
    assert float(sums["forward_loss"]) == pytest.approx(sum(ahead), rel=1e-5)
    assert float(sums["backward_loss"]) == pytest.approx(sum(behind), rel=1e-5)
    assert float(sums["nll"]) == pytest.approx((sum(ahead) + sum(behind)) / 2, rel=1e-5)


def test_padded_rows_and_micro_batches_add_up() -> None:
    model = small_model()
    whole, _ = objective().loss(model, {"tokens": torch.tensor(ROWS)})
    short = {"tokens": torch.tensor([ROWS[0] + [0, 0], ROWS[1] + [3, 3]]), "lengths": torch.tensor([5, 5])}
    padded, _ = objective().loss(model, short)
    assert padded.item() == pytest.approx(whole.item(), rel=1e-5)
    totals = objective().counts(short)
    assert totals == objective().counts({"tokens": torch.tensor(ROWS)})
    parts = [objective().loss(model, {"tokens": torch.tensor([row])}, totals)[0].item() for row in ROWS]
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-5)


def test_gradients_reach_every_parameter_but_those_of_words_that_did_not_come() -> None:
    model = small_model()
    objective().loss(model, {"tokens": torch.tensor(ROWS)})[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    used = {ord(c) for row in ROWS for t in row if t not in (0, 8) for c in WORDS[t]} | set(range(256, 261))
    rows = model.words.embedding.weight.grad.any(1).nonzero().flatten().tolist()  # type: ignore[union-attr]
    assert set(rows) <= used


def test_a_sampled_softmax_trains_and_the_full_one_evaluates() -> None:
    """Estimated from 4 of 6 words; the mean over many draws leans towards the full loss's gradient."""
    model = small_model().train()
    batch = {"tokens": torch.tensor(ROWS)}
    full, sampled = (objective(samples).loss(model, batch)[0] for samples in (None, 4))
    assert sampled.item() != full.item()
    model.eval()
    assert objective(4).loss(model, batch)[0].item() == objective().loss(model, batch)[0].item()
    model.train()
    assert objective(6).loss(model, batch)[0].item() == full.item()  # as many as there are


def test_a_batch_without_words_gives_zero() -> None:
    loss, sums = objective().loss(small_model(), {"tokens": torch.tensor([[0, 8, 0, 0]])})
    assert (loss.item(), float(sums["nll"]), int(sums["targets"])) == (0.0, 0.0, 0)


def test_held_out_text_is_scored_once_in_windows_of_its_documents(tmp_path: Path) -> None:
    documents = [[3, 4, 5, 8, 3], [4], [3, 3, 4, 4, 5, 5, 3]]
    stream = np.concatenate([[0, *document] for document in documents])
    stream.astype("<u4").tofile(tmp_path / "tokens")
    np.array([0, 6, 8], "<i8").tofile(tmp_path / "documents")
    array = FileArray([tmp_path / "documents"], "<i8")
    split = TokenizedSplit(FileArray([tmp_path / "tokens"], "<u4"), array, array, 99, SEPARATOR, len(WORDS), "x")
    batches = list(objective().held_out(split, 3, 2))
    rows = [
        row[: length + 1].tolist()
        for batch in batches
        for row, length in zip(batch["tokens"], batch["lengths"].tolist(), strict=True)
    ]
    assert rows == [[0, 3, 4, 5], [5, 8, 3, 0], [0, 4, 0], [0, 3, 3, 4], [4, 4, 5, 5], [5, 3, 0]]
    assert [len(batch["tokens"]) for batch in batches] == [2, 2, 2]
    pairs = sum(objective().counts(batch)["targets"] for batch in batches)
    assert pairs == sum(len(document) + 1 for document in documents)


def test_the_estimate_of_operations_counts_what_is_sampled() -> None:
    model = small_model()
    context = sum(parameter.numel() for parameter in model.context.parameters())
    assert objective().training_flops(model, 10) == 60 * (context + 2 * PREDICTED * 8)
    assert objective(3).training_flops(model, 10) == 60 * (context + 2 * 3 * 8)
