"""Adafactor as T5 uses it (Shazeer and Stern 2018, algorithms 4 to 6; mesh_tensorflow/optimize.py).

`torch.optim.Adafactor` bounds the rate by 1 / sqrt(step) on its own; here the rate is the schedule's alone.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stemma.training.distributed import full_tensor, like

EPSILON = 1e-30  # added to squared gradients
LEAST_SCALE = 1e-3  # of a parameter, so that one that starts at 0 can leave it
LEAST_FACTORED = 128  # a matrix with a smaller side keeps all its second moments


class Adafactor(torch.optim.Optimizer):
    """Second moments of a matrix as the product of a row and a column; no first moments, no weight decay.

    With g the gradient of update t and beta = 1 - t^-decay, the moving averages of g^2 are r (means of the rows) and
    c (means of the columns), and

        u = g / sqrt(r c / mean(r));  parameter -= learning_rate * max(1e-3, rms(parameter)) * u / max(1, rms(u) / clip)

    so that `learning_rate` is relative to the size of the parameter. Vectors and small matrices keep all of g^2.

    Args:
        parameters: or groups of them. clip: largest root mean square of an update.
        decay: exponent of the averages' memory.
    """

    def __init__(
        self, parameters: Iterable[Any], *, learning_rate: float, clip: float = 1.0, decay: float = 0.8
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "clip": clip, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=gradient.device)
        state["step"] += 1
        mixing = state["step"] ** -group["decay"]  # 1 - beta
        squared = gradient.square().add_(EPSILON)
        if parameter.dim() >= 2 and min(parameter.shape[-2:]) >= LEAST_FACTORED:
            rows = _average(state, "rows", full_tensor(squared.mean(-1)), mixing)
            columns = _average(state, "columns", full_tensor(squared.mean(-2)), mixing)
            row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1)
            update = like(parameter, row_factor * columns.rsqrt().unsqueeze(-2)).mul_(gradient)
        else:
            update = _average(state, "squares", squared, mixing).rsqrt().mul_(gradient)
        update.div_((_rms(update) / group["clip"]).clamp_min(1.0))
        parameter.sub_(update.mul_(group["lr"] * _rms(parameter).clamp_min(LEAST_SCALE)))


def _average(state: dict[str, Tensor], name: str, value: Tensor, mixing: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].lerp_(value, mixing)


def _rms(tensor: Tensor) -> Tensor:
    return full_tensor(tensor.float().square().mean()).sqrt()
