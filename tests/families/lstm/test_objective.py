"""Both objectives against torch's own layers over whole texts; carried states; held-out text; learning to copy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import InputError
from stemma.families.lstm import objective as objectives
from stemma.families.lstm.documents import Pieces
from stemma.families.lstm.model import LSTM
from stemma.families.lstm.objective import CarriedCausal, SequenceAutoencoder
from stemma.layers import sampled_softmax
from stemma.training.batches import Batches, Plan

from .plain import SMALL, Plain, model_of, nll, split_of

RNG = np.random.default_rng(5)
DOCUMENTS = [RNG.integers(1, 31, size=size).tolist() for size in (40, 3, 61, 0, 25, 1, 90)]


def batches_of(objective: CarriedCausal, folder: Path, micro_batch: int | None = None) -> Batches:
    sequences = objective.sequences(split_of(folder / "corpus", DOCUMENTS), 8, 2, 4)
    return Batches(sequences, objective, Plan(4), seed=1, micro_batch=micro_batch)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_windows_one_after_the_other_are_one_long_text(micro_batch: int | None, tmp_path: Path) -> None:
    """Against torch's layers on the rows as a whole: the same losses, and the gradients of the last window alone."""
    objective, model = CarriedCausal(0), model_of()
    batches, plain = batches_of(objective, tmp_path, micro_batch), Plain(model)
    rows = [[batches.sequences.sequence(4 * update + row).tokens for update in range(5)] for row in range(4)]
    whole = torch.tensor(np.array([np.concatenate([row[0][:1], *(window[1:] for window in row)]) for row in rows]))
    losses = F.cross_entropy(plain(whole[:, :-1]).transpose(1, 2), whole[:, 1:], reduction="none").split(8, dim=1)
    for update in range(5):
        model.zero_grad()
        total = 0.0
        for batch in batches.micro_batches(update):
            loss, sums = objective.loss(model, batch, {"targets": 32})
            assert float(sums["nll"]) == pytest.approx(32 * float(loss.detach()), rel=1e-5)
            loss.backward()
            total += float(loss.detach())
        assert total == pytest.approx(float(losses[update].detach().mean()), rel=1e-5)
    # Truncated: the last window read alone, from the state in which the others left it.
    x, states = plain.embedding(whole[:, :32]), []
    with torch.no_grad():
        for layer in plain.layers:
            x, state = layer(x)
            states.append(state)
    x = plain.embedding(whole[:, 32:40])
    for layer, state in zip(plain.layers, states, strict=True):
        x, _ = layer(x, state)
    F.cross_entropy(plain.output(x).flatten(0, 1), whole[:, 33:].flatten()).backward()
    for block, layer in zip(model.blocks, plain.layers, strict=True):
        for one, other in zip(block.parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_a_document_begins_from_nothing_where_documents_are_separate(tmp_path: Path) -> None:
    objective, model = CarriedCausal(0, separate_documents=True), model_of()
    batches, plain = batches_of(objective, tmp_path), Plain(model)
    found, together = [], CarriedCausal(0)
    for update in range(6):
        (batch,) = batches.micro_batches(update)
        found.append(float(objective.loss(model, batch)[1]["nll"]))
        together.loss(model, {name: tensor for name, tensor in batch.items() if name != "starts"})
    expected = [0.0] * 6
    for row in range(4):
        tokens = np.concatenate([batches.sequences.sequence(4 * n + row).tokens[:8] for n in range(6)])
        last = batches.sequences.sequence(4 * 5 + row).tokens[8]
        text: list[int] = []
        for place, target in enumerate([*tokens[1:], last]):
            text = [0] if tokens[place] == 0 else [*text, int(tokens[place])]
            logits = plain(torch.tensor([text]))[0, -1]
            expected[place // 8] += float(F.cross_entropy(logits, torch.tensor(target)).detach())
    assert found == pytest.approx(expected, rel=1e-5)
    assert (objective.carried["cells.0"] - together.carried["cells.0"]).abs().max() > 1e-3


def test_evaluation_leaves_the_carried_state_alone(tmp_path: Path) -> None:
    objective, model = CarriedCausal(0), model_of()
    (first,) = batches_of(objective, tmp_path).micro_batches(0)
    objective.loss(model, first)
    before = {name: tensor.clone() for name, tensor in objective.carried.items()}
    assert len(before) == 6 and all(tensor.any() for tensor in before.values())
    one = objective.loss(model.eval(), first)[0]
    objective.loss(model, {name: tensor.flip(0) for name, tensor in first.items()})
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.carried.items())
    assert torch.equal(one, objective.loss(model, first)[0])


def test_held_out_documents_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "_PIECE", 16)  # smaller than the documents
    model, split = model_of().eval(), split_of(tmp_path / "held-out", DOCUMENTS)
    batches = list(CarriedCausal(0).held_out(split, 10, 8))
    sums = [CarriedCausal(0).loss(model, batch)[1] for batch in batches]
    expected = sum(float(nll(Plain(model), [0, *document]).detach()) for document in DOCUMENTS if document)
    assert sum(float(one["nll"]) for one in sums) == pytest.approx(expected, rel=1e-5)
    assert sum(int(one["targets"]) for one in sums) == sum(map(len, DOCUMENTS))
    assert len(batches) > 1 and all(batch["tokens"].numel() <= 80 or len(batch["tokens"]) == 1 for batch in batches)


def test_penalties_are_those_of_awd_lstm(tmp_path: Path) -> None:
    model = model_of(replace(SMALL, output_dropout=0.3))
    (batch,) = batches_of(CarriedCausal(0), tmp_path).micro_batches(0)
    losses: dict[tuple[float, float], Tensor] = {}
    for penalties in ((0.0, 0.0), (2.0, 0.0), (0.0, 1.0)):
        torch.manual_seed(3)
        losses[penalties] = CarriedCausal(0, 0, 0, *penalties).loss(model, batch, {"targets": 128})[0]
    torch.manual_seed(3)
    raw, _ = model.read(batch["tokens"])
    dropped = model.output_dropout(raw)
    # The batch is a quarter of its step.
    activation = 2.0 * dropped.pow(2).mean() / 4
    temporal = (raw[:, 1:] - raw[:, :-1]).pow(2).mean() / 4
    torch.testing.assert_close(losses[2.0, 0.0] - losses[0.0, 0.0], activation, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(losses[0.0, 1.0] - losses[0.0, 0.0], temporal, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="objective.deviation: -1, expected 0 or more"):
        CarriedCausal(0, deviation=-1)


def autoencoded(objective: SequenceAutoencoder, texts: list[list[int]]) -> Mapping[str, Tensor]:
    return objective.collate([objective.example(np.array(text), RNG) for text in texts])


def test_an_autoencoder_is_scored_on_the_text_written_again() -> None:
    """Of p(text, end | text, end), by torch's layers on `separator text separator text` of each row by itself."""
    model, objective = model_of(), SequenceAutoencoder(0)
    plain, texts = Plain(model), [[5, 6, 7], [9], list(range(1, 12))]
    loss, sums = objective.loss(model, autoencoded(objective, texts))
    expected = 0.0
    for text in texts:
        row = torch.tensor([[0, *text, 0, *text]])
        logits = plain(row)[0, len(text) + 1 :].detach()
        expected += float(F.cross_entropy(logits, torch.tensor([*text, 0]), reduction="sum"))
    assert (
        int(sums["targets"]) == sum(map(len, texts)) + 3 == objective.counts(autoencoded(objective, texts))["targets"]
    )
    assert float(sums["nll"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(expected / int(sums["targets"]), rel=1e-5)


@pytest.mark.parametrize("kind", [CarriedCausal, SequenceAutoencoder])
def test_training_may_sample_its_softmax_and_evaluation_has_all_of_it(
    kind: type[CarriedCausal | SequenceAutoencoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, model = kind(0, samples=4), model_of()
    batches = Batches(
        objective.sequences(split_of(tmp_path / "corpus", DOCUMENTS), 8, 2, 4), objective, Plan(4), seed=1
    )
    (batch,) = batches.micro_batches(0)
    drawn = torch.tensor([3, 9, 30, 12])
    monkeypatch.setattr(
        sampled_softmax, "log_uniform", lambda size, count, targets: (drawn, torch.ones(4), torch.ones(len(targets)))
    )
    loss, _ = objective.loss(model, batch)
    kept = batch["targets"] != objectives.IGNORED
    logits, targets = Plain(model)(batch["tokens"])[kept], batch["targets"][kept]
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[:, drawn] = True
    seen[torch.arange(len(targets)), targets] = True
    expected = F.cross_entropy(logits.masked_fill(~seen, -torch.inf), targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    evaluated, _ = objective.loss(model.eval(), batch)
    assert float(evaluated.detach()) == pytest.approx(float(F.cross_entropy(logits, targets).detach()), rel=1e-5)
    with pytest.raises(InputError, match="objective.samples: 0, expected 1 or more tokens, or null for all"):
        kind(0, samples=0)


def test_pieces_cover_every_document_once(tmp_path: Path) -> None:
    split = split_of(tmp_path / "corpus", DOCUMENTS)
    pieces = Pieces(split, 25)
    joined: list[int] = []
    for number, size in enumerate(pieces.sizes):
        assert len(pieces[number]) == size <= 25
        joined += pieces[number].tolist()
    assert joined == sum(DOCUMENTS, []) and len(pieces) == 2 + 1 + 3 + 0 + 1 + 1 + 4
    sequences = SequenceAutoencoder(0).sequences(split, 25, 1, 4)
    epoch = sorted(sequences.sequence(index).tolist() for index in range(12))
    assert epoch == sorted(pieces[number].tolist() for number in range(12))
    with pytest.raises(InputError, match="no text"):
        Pieces(split_of(tmp_path / "empty", [[], []]), 25)


def test_held_out_pieces_are_scored_once_and_are_no_likelihood(tmp_path: Path) -> None:
    split = split_of(tmp_path / "corpus", DOCUMENTS)
    batches = list(SequenceAutoencoder(0).held_out(split, 25, 5))
    assert [len(batch["tokens"]) for batch in batches] == [5, 5, 2]
    targets = torch.cat([batch["targets"][batch["targets"] > 0] for batch in batches])
    assert sorted(targets.tolist()) == sorted(sum(DOCUMENTS, []))
    assert not SequenceAutoencoder.likelihood


def test_two_tokens_are_written_again_without_a_mistake() -> None:
    """All 64 texts of two out of eight tokens."""
    torch.manual_seed(0)
    model, objective = LSTM(replace(SMALL, vocabulary=9, embedding=32, hidden=32, layers=1)), SequenceAutoencoder(0)
    batch = autoencoded(objective, [[a, b] for a in range(1, 9) for b in range(1, 9)])
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = objective.loss(model, batch)
        loss.backward()
        optimizer.step()
    scored = batch["targets"] >= 0
    assert torch.equal(model(batch["tokens"]).argmax(-1)[scored], batch["targets"][scored])


def test_floating_point_operations_are_those_of_the_parameters_that_a_token_meets() -> None:
    model = model_of()
    matrices = sum(4 * out * (into + out) for into, out in ((12, 17), (17, 17), (17, 12)))
    assert CarriedCausal(0).training_flops(model, 8) == 6 * 8 * (matrices + 31 * 12)
    assert SequenceAutoencoder(0).training_flops(model, 8) == 6 * 8 * (2 * matrices + 31 * 12)
