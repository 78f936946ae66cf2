"""The clipped, projected LSTM against its equations written out, and against torch.nn.LSTM where that can do it."""

import pytest
import torch
from torch import Tensor, nn

from stemma.layers import projected_lstm
from stemma.layers.packed_rows import PackedRows
from stemma.layers.projected_lstm import LSTMState, ProjectedLSTM

INPUTS, CELL, PROJECTION, LENGTH = 5, 7, 4, 6
LENGTHS = torch.tensor([3, 6, 1, 4])


def layer(**clips: float) -> ProjectedLSTM:
    torch.manual_seed(0)
    made = ProjectedLSTM(INPUTS, CELL, PROJECTION, **clips).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn_like(parameter)  # large enough for clips to matter
    return made


def written_out(model: ProjectedLSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One row of one direction: x [direction][length, inputs] -> outputs, and the last states; plain autograd."""
    outputs = []
    for direction in range(2):
        h, c, steps = hidden[direction], cell[direction], []
        for step in x[direction]:
            gates = model.input_weight[direction] @ step + model.recurrent_weight[direction] @ h
            entry, forget, output, candidate = (gates + model.bias[direction]).chunk(4)
            c = forget.sigmoid() * c + entry.sigmoid() * candidate.tanh()
            c = c if model.cell_clip is None else c.clamp(-model.cell_clip, model.cell_clip)
            h = model.projection_weight[direction] @ (output.sigmoid() * c.tanh())
            h = h if model.projection_clip is None else h.clamp(-model.projection_clip, model.projection_clip)
            steps.append(h)
        outputs.append((torch.stack(steps), h, c))
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("clips", [{}, {"cell_clip": 0.6, "projection_clip": 0.8}], ids=["free", "clipped"])
def test_outputs_states_and_every_gradient_are_those_of_the_equations(clips: dict[str, float]) -> None:
    model = layer(**clips)
    x = torch.randn(2, 4, LENGTH, INPUTS, dtype=torch.double, requires_grad=True)
    hidden = torch.randn(2, 4, PROJECTION, dtype=torch.double, requires_grad=True)
    cell = torch.randn(2, 4, CELL, dtype=torch.double, requires_grad=True)
    inputs = [x, hidden, cell, *model.parameters()]

    expected, weighted = [], torch.zeros((), dtype=torch.double)
    for row, length in enumerate(LENGTHS.tolist()):
        expected.append(written_out(model, x[:, row, :length], hidden[:, row], cell[:, row]))
        weighted = weighted + sum((part * (2.5 + part)).sum() for part in expected[-1])
    wanted = torch.autograd.grad(weighted, inputs)
    if clips:
        states = torch.cat([parts[0].flatten() for parts in expected])
        assert 5 < (states.abs() == clips["projection_clip"]).sum() < states.numel()

    rows = PackedRows.of(LENGTHS, LENGTH)
    packed, state = model(rows.pack(x), rows, LSTMState(hidden, cell))
    outputs = rows.pad(packed, x)
    for row, length in enumerate(LENGTHS.tolist()):
        found = outputs[:, row, :length], state.hidden[:, row], state.cell[:, row]
        for ours, theirs in zip(found, expected[row], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert not outputs[:, row, length:].any()
    total = sum((part * (2.5 + part)).sum() for part in (outputs, state.hidden, state.cell))
    for ours, theirs in zip(torch.autograd.grad(total, inputs), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_without_clips_it_is_torchs_projected_lstm() -> None:
    model = layer().float()
    theirs = nn.LSTM(INPUTS, CELL, proj_size=PROJECTION, batch_first=True)
    first, forget, output, candidate = (torch.arange(CELL) + part * CELL for part in range(4))
    order = torch.cat([first, forget, candidate, output])  # torch has the candidate third
    names = {"weight_ih_l0": model.input_weight, "weight_hh_l0": model.recurrent_weight, "bias_ih_l0": model.bias}
    with torch.no_grad():
        for name, ours in names.items():
            getattr(theirs, name).copy_(ours[1][order])
        theirs.bias_hh_l0.zero_()
        theirs.weight_hr_l0.copy_(model.projection_weight[1])
    x = torch.randn(2, 3, LENGTH, INPUTS)
    rows = PackedRows.of(torch.full((3,), LENGTH), LENGTH)
    outputs, _ = model(rows.pack(x), rows)
    expected, _ = theirs(x[1])
    torch.testing.assert_close(rows.pad(outputs, x)[1], expected, rtol=0, atol=1e-6)
    outputs[1].square().sum().backward()
    expected.square().sum().backward()
    for name, ours in names.items():
        torch.testing.assert_close(ours.grad[1][order], getattr(theirs, name).grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.projection_weight.grad[1], theirs.weight_hr_l0.grad, rtol=1e-5, atol=1e-5)


def test_in_two_parts_with_the_state_between_it_is_the_whole() -> None:
    model, x = layer(cell_clip=0.6), torch.randn(2, 3, LENGTH, INPUTS, dtype=torch.double)
    whole, end = model(*packed(x))
    first, state = model(*packed(x[:, :, :2]))
    second, state = model(*packed(x[:, :, 2:]), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.cell, end.cell, rtol=0, atol=1e-12)


def test_without_gradients_gates_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = layer(cell_clip=0.6), torch.randn(2, 4, LENGTH, INPUTS, dtype=torch.double)
    rows = PackedRows.of(LENGTHS, LENGTH)
    whole, end = model(rows.pack(x), rows)
    monkeypatch.setattr(projected_lstm, "BLOCK", 5)  # does not divide the steps evenly
    with torch.no_grad():
        blocks, state = model(rows.pack(x), rows)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.hidden, end.hidden, rtol=0, atol=1e-12)


def test_autocast_leaves_the_recurrence_alone() -> None:
    model, x = layer().float(), torch.randn(2, 3, LENGTH, INPUTS)
    expected, _ = model(*packed(x))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = model(*packed(x))
    assert torch.equal(found, expected)


def test_states_of_fewer_and_of_more_rows() -> None:
    state = LSTMState(torch.randn(2, 3, 4), torch.randn(2, 3, 7))
    assert torch.equal(state.resized(2).hidden, state.hidden[:, :2])
    more = state.resized(5)
    assert torch.equal(more.cell[:, :3], state.cell) and not more.cell[:, 3:].any() and more.hidden.shape == (2, 5, 4)


def packed(x: Tensor) -> tuple[Tensor, PackedRows]:
    rows = PackedRows.of(torch.full((x.shape[1],), x.shape[2]), x.shape[2])
    return rows.pack(x), rows
