"""Long short-term memory with a projected output and clipped states (Sak et al. 2014; ELMo's, Peters et al. 2018).

`torch.nn.LSTM` has the projection but no clipping, and keeps no cell states from which to tell afterwards whether there
was any. Here a step is two products and a few passes in place over what it has; everything that does not wait for the
step before (the products of the inputs, and in the backward pass those of all weights' gradients) is one product over
all steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stemma.layers.packed_rows import PackedRows

BLOCK = 2048  # steps of rows whose gates are held at once where nothing is kept for a backward pass


@dataclass(frozen=True)
class LSTMState:
    """Where a layer stands: `hidden` float [directions, batch, projection], `cell` float [directions, batch, cell]."""

    hidden: Tensor
    cell: Tensor

    def resized(self, batch: int) -> "LSTMState":
        """Return the states of the first rows, and zeros for more rows than there are."""

        def resize(state: Tensor) -> Tensor:
            more = state.new_zeros(state.shape[0], max(batch - state.shape[1], 0), state.shape[2])
            return torch.cat([state[:, :batch], more], 1)

        return LSTMState(resize(self.hidden), resize(self.cell))


class ProjectedLSTM(nn.Module):
    """One layer of several independent directions, each with weights of its own.

        input, forget, output gate = sigmoid(...); candidate = tanh(...), all of the input and the last hidden state
        cell = clip(forget * cell + input * candidate);  hidden = clip(projection @ (output * tanh(cell)))

    The rows of the weights stand in this order: input, forget, output gate, candidate.

    Args:
        inputs, cell, projection: widths. cell_clip, projection_clip: largest absolute value; None: no limit.
    """

    def __init__(
        self,
        inputs: int,
        cell: int,
        projection: int,
        *,
        directions: int = 2,
        cell_clip: float | None = None,
        projection_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.cell_clip, self.projection_clip = cell_clip, projection_clip
        self.input_weight = nn.Parameter(torch.empty(directions, 4 * cell, inputs))
        self.recurrent_weight = nn.Parameter(torch.empty(directions, 4 * cell, projection))
        self.bias = nn.Parameter(torch.empty(directions, 4 * cell))
        self.projection_weight = nn.Parameter(torch.empty(directions, projection, cell))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the weights as TensorFlow's LSTMCell does (Glorot's uniform); biases 0, of the forget gates 1."""
        directions, gates, inputs = self.input_weight.shape
        projection, cell = self.projection_weight.shape[1:]
        limit = (6 / (inputs + projection + gates)) ** 0.5
        for weight in (self.input_weight, self.recurrent_weight):
            nn.init.uniform_(weight, -limit, limit)
        limit = (6 / (projection + cell)) ** 0.5
        nn.init.uniform_(self.projection_weight, -limit, limit)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[:, cell : 2 * cell])

    def forward(self, x: Tensor, rows: PackedRows, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Map packed float [directions, total, inputs] to [directions, total, projection]; return the last state too.

        Args:
            state: of each row before its first step; default: zeros.
        """
        directions, projection, cell = self.projection_weight.shape
        batch = len(rows.order)
        x = x.to(self.bias.dtype)  # also under autocast: rounding would add up from step to step
        if state is None:
            state = LSTMState(x.new_zeros(directions, batch, projection), x.new_zeros(directions, batch, cell))
        else:
            state = LSTMState(state.hidden[:, rows.order], state.cell[:, rows.order])
        weights = (self.input_weight, self.recurrent_weight, self.bias, self.projection_weight)
        with torch.autocast(x.device.type, enabled=False):
            hidden, cells = _Recurrence.apply(
                x,
                *weights,
                state.hidden,
                state.cell,
                rows,
                self.cell_clip,
                self.projection_clip,
                torch.is_grad_enabled(),  # which a Function's needs_input_grad does not know of
            )
        return hidden, LSTMState(hidden[:, rows.last], cells[:, rows.last])


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        input_weight: Tensor,
        recurrent_weight: Tensor,
        bias: Tensor,
        projection_weight: Tensor,
        first_hidden: Tensor,
        first_cell: Tensor,
        rows: PackedRows,
        cell_clip: float | None,
        projection_clip: float | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        directions, projection, width = projection_weight.shape
        recurrent, projected = recurrent_weight.transpose(1, 2), projection_weight.transpose(1, 2).contiguous()
        most = x.shape[1] if keep else max(BLOCK, rows.sizes[0])  # rows whose gates are held at once
        begin = end = 0
        cells = x.new_empty(directions, x.shape[1], width)
        squashed = torch.empty_like(cells) if keep else x.new_empty(directions, rows.sizes[0], width)
        hiddens = x.new_empty(directions, x.shape[1], projection)
        hidden, cell = first_hidden, first_cell
        for start, size in zip(rows.starts, rows.sizes, strict=True):
            now = slice(start, start + size)
            if now.stop > end:
                begin, end = start, start + most
                gates = torch.baddbmm(bias.unsqueeze(1), x[:, begin:end], input_weight.transpose(1, 2))
            gate = gates[:, start - begin : start - begin + size].baddbmm_(hidden[:, :size], recurrent)
            gate[..., : 3 * width].sigmoid_()
            gate[..., 3 * width :].tanh_()
            entry, forget, output, candidate = gate.split(width, -1)
            cell = torch.mul(forget, cell[:, :size], out=cells[:, now]).addcmul_(entry, candidate)
            if cell_clip is not None:
                cell.clamp_(-cell_clip, cell_clip)
            shown = torch.tanh(cell, out=squashed[:, now if keep else slice(size)])
            hidden = hiddens[:, now].copy_(torch.bmm(shown * output, projected))
            if projection_clip is not None:
                hidden.clamp_(-projection_clip, projection_clip)
        if keep:
            weights = input_weight, recurrent_weight, projection_weight
            ctx.save_for_backward(x, *weights, first_hidden, first_cell, gates, cells, squashed, hiddens)
        ctx.rows, ctx.clips = rows, (cell_clip, projection_clip)
        ctx.set_materialize_grads(False)
        return hiddens, cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hiddens: Tensor | None, grad_cells: Tensor | None) -> tuple[Tensor | None, ...]:
        x, input_weight, recurrent_weight, projection_weight, *states = ctx.saved_tensors
        first_hidden, first_cell, gates, cells, squashed, hiddens = states
        rows, width = ctx.rows, cells.shape[-1]
        cell_clip, projection_clip = (
            limit if _reached(state, limit) else None for state, limit in zip((cells, hiddens), ctx.clips, strict=True)
        )
        grad_gates, grad_projected = torch.empty_like(gates), torch.zeros_like(hiddens)
        if grad_hiddens is not None:
            grad_projected.copy_(grad_hiddens)
        grad_hidden, grad_cell = torch.zeros_like(first_hidden), torch.zeros_like(first_cell)
        for step, size in reversed(list(enumerate(rows.sizes))):
            now = slice(rows.starts[step], rows.starts[step] + size)
            entry, forget, output, candidate = gates[:, now].split(width, -1)
            grad = grad_projected[:, now].add_(grad_hidden[:, :size])
            if projection_clip is not None:
                grad.masked_fill_(hiddens[:, now].abs() >= projection_clip, 0)
            grad_shown = torch.bmm(grad, projection_weight)  # of output * tanh(cell)
            grad_now, shown = grad_gates[:, now], squashed[:, now]
            torch.mul(grad_shown, shown, out=grad_now[..., 2 * width : 3 * width])
            grad_c = torch.ops.aten.tanh_backward(grad_shown.mul_(output), shown).add_(grad_cell[:, :size])
            if grad_cells is not None:
                grad_c.add_(grad_cells[:, now])
            if cell_clip is not None:
                grad_c.masked_fill_(cells[:, now].abs() >= cell_clip, 0)
            last = cells[:, rows.starts[step - 1] :] if step else first_cell
            torch.mul(grad_c, candidate, out=grad_now[..., :width])
            torch.mul(grad_c, last[:, :size], out=grad_now[..., width : 2 * width])
            torch.mul(grad_c, entry, out=grad_now[..., 3 * width :])
            _through(torch.ops.aten.sigmoid_backward, grad_now[..., : 3 * width], gates[:, now, : 3 * width])
            _through(torch.ops.aten.tanh_backward, grad_now[..., 3 * width :], candidate)
            torch.mul(grad_c, forget, out=grad_cell[:, :size])
            grad_hidden[:, :size] = torch.bmm(grad_now, recurrent_weight)
        shown = squashed * gates[..., 2 * width : 3 * width]
        previous = torch.cat([first_hidden, hiddens], 1)[:, rows.previous]
        # One product for both: the gradients of the gates are by far the largest array here.
        grad_weight = torch.bmm(grad_gates.transpose(1, 2), torch.cat([x, previous], -1))
        grad_input_weight, grad_recurrent_weight = grad_weight.split([x.shape[-1], hiddens.shape[-1]], -1)
        return (
            torch.bmm(grad_gates, input_weight) if ctx.needs_input_grad[0] else None,
            grad_input_weight,
            grad_recurrent_weight,
            grad_gates.sum(1),
            torch.bmm(grad_projected.transpose(1, 2), shown),
            grad_hidden,
            grad_cell,
            None,
            None,
            None,
            None,
        )


def _reached(state: Tensor, limit: float | None) -> bool:
    """Return whether anything was clipped."""
    if limit is None or not state.numel():
        return False
    low, high = state.aminmax()
    return max(-float(low), float(high)) >= limit


def _through(derivative: Any, grad: Tensor, value: Tensor) -> None:
    """Multiply a gradient, in place, by the derivative of the function that gave `value`."""
    derivative.grad_input(grad, value, grad_input=grad)
