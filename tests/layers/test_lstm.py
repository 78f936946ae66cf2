"""One layer against `torch.nn.LSTM`: numbers, gradients, forgotten states, and the dropped matrix."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.layers.lstm import LSTMLayer

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def pair(inputs: int = 5, hidden: int = 7, **options: float) -> tuple[LSTMLayer, nn.LSTM]:
    torch.manual_seed(0)
    ours, theirs = LSTMLayer(inputs, hidden, **options), nn.LSTM(inputs, hidden, batch_first=True)
    theirs.load_state_dict({f"{name}_l0": ours.get_parameter(name) for name in PARTS})
    return ours, theirs


def random_state(rows: int = 3, hidden: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, hidden), torch.randn(rows, hidden)


def lifted(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return state[0].unsqueeze(0), state[1].unsqueeze(0)


@pytest.mark.parametrize("given", [False, True])
def test_outputs_states_and_gradients_are_those_of_torch(given: bool) -> None:
    ours, theirs = pair()
    x, state = torch.randn(3, 11, 5), random_state() if given else None
    output, (hidden, cells) = ours(x, state)
    expected, (last, last_cells) = theirs(x, None if state is None else lifted(state))
    for found, wanted in ((output, expected), (hidden, last[0]), (cells, last_cells[0])):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    (output.square().sum() + cells.sum()).backward()
    (expected.square().sum() + last_cells.sum()).backward()
    for name in PARTS:
        torch.testing.assert_close(
            ours.get_parameter(name).grad, theirs.get_parameter(f"{name}_l0").grad, rtol=1e-5, atol=1e-5
        )


def test_a_forgotten_state_is_that_of_a_text_of_its_own() -> None:
    ours, theirs = pair()
    x, state = torch.randn(3, 9, 5), random_state()
    starts = torch.zeros(3, 9, dtype=torch.bool)
    starts[0, [0, 4]] = starts[1, 6] = True  # row 2 goes on throughout
    output, (hidden, _) = ours(x, state, starts)
    rows = [
        [(None, x[0, :4]), (None, x[0, 4:])],
        [(state, x[1, :6]), (None, x[1, 6:])],
        [(state, x[2])],
    ]
    for row, texts in enumerate(rows):
        parts = []
        for before, text in texts:
            begun = None if before is None else tuple(part[row : row + 1] for part in before)
            parts.append(theirs(text, begun)[0])
        torch.testing.assert_close(output[row], torch.cat(parts), rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden, output[:, -1])
    output[0, 4:].sum().backward()
    assert x.grad is None and ours.weight_hh.grad is not None


def test_the_gradient_does_not_pass_a_forgotten_state() -> None:
    ours, _ = pair()
    x = torch.randn(1, 6, 5, requires_grad=True)
    starts = torch.tensor([[False, False, False, True, False, False]])
    ours(x, None, starts)[0][0, 5].sum().backward()
    assert x.grad is not None and not x.grad[0, :3].any() and x.grad[0, 3:].abs().min() > 0


@pytest.mark.parametrize("cut", [False, True])
def test_the_dropped_matrix_is_the_same_at_all_steps(cut: bool) -> None:
    ours, theirs = pair(weight_dropout=0.5)
    x = torch.randn(3, 11, 5)
    starts = torch.zeros(3, 11, dtype=torch.bool)
    starts[:, [0, 5]] = True
    torch.manual_seed(4)
    mask = F.dropout(torch.ones(28, 7), 0.5)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    torch.manual_seed(4)
    output, _ = ours(x, None, starts if cut else None)
    theirs.weight_hh_l0.data = ours.weight_hh.data * mask
    expected = torch.cat([theirs(x[:, :5])[0], theirs(x[:, 5:])[0]], 1) if cut else theirs(x)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    output.sum().backward()
    assert ours.weight_hh.grad is not None and not ours.weight_hh.grad[mask == 0].any()
    assert not torch.allclose(ours.eval()(x)[0], output)


def test_a_forget_bias_stands_in_one_of_the_two() -> None:
    ours, _ = pair(forget_bias=1.0)
    total = ours.bias_ih + ours.bias_hh
    assert torch.equal(total[7:14], torch.ones(7))
    assert total[:7].abs().max() < 1 and total.detach().abs().min() > 0  # of the others nothing is set
