"""The mean of the last checkpoints, by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stemma.errors import InputError
from stemma.training.averaging import applied, mean_of_checkpoints
from stemma.training.state import TENSORS, save_state


def write(folder: Path, step: int, value: float, dtype: torch.dtype = torch.float32) -> None:
    tensors = {"model.weight": torch.full((2, 3), value, dtype=dtype), "model.bias": torch.tensor([value, -value])}
    save_state(folder, step, tensors, {})


def test_the_newest_complete_checkpoints_count_alike(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    for step, value in ((10, 100.0), (20, 1.0), (30, 2.0), (40, 6.0), (50, 9.0)):
        write(tmp_path, step, value)
    (tmp_path / "step-00000050" / TENSORS).write_bytes(b"cut off")
    means = mean_of_checkpoints(tmp_path, 3, model)
    assert torch.equal(means["weight"], torch.full((2, 3), 3.0)) and means["bias"].tolist() == [3.0, -3.0]
    assert mean_of_checkpoints(tmp_path, 9, model)["bias"].tolist() == [27.25, -27.25]  # all that are there

    before = model.weight.detach().clone()
    with applied(model, means):
        assert torch.equal(model.weight, means["weight"])
    assert torch.equal(model.weight, before)


def test_it_is_taken_in_float32(tmp_path: Path) -> None:
    for step in range(1, 4):
        write(tmp_path, step, 1.0 if step > 1 else 1.0078125, torch.bfloat16)  # the next number after 1
    mean = mean_of_checkpoints(tmp_path, 3, nn.Linear(3, 2))["weight"]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((2, 3), 1 + 0.0078125 / 3))


def test_what_cannot_be_averaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to take the mean of"):
        mean_of_checkpoints(tmp_path, 2, nn.Linear(3, 2))
    write(tmp_path, 1, 1.0)
    with pytest.raises(InputError, match=r"'model.weight' is \[2, 3\], the model's \[2, 4\]"):
        mean_of_checkpoints(tmp_path, 2, nn.Linear(4, 2))
