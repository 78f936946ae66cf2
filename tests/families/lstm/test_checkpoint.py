"""To disk and back; torch's own LSTM takes the tensors as they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.lstm.model import LSTM, LSTMConfig

from .plain import SMALL, model_of

TOKENS = torch.arange(20).view(2, 10) % 31
EQUALLY_WIDE = LSTMConfig(vocabulary=31, embedding=10, hidden=16, layers=2, output_dropout=0.2)


@pytest.mark.parametrize("config", [SMALL, EQUALLY_WIDE], ids=["tied", "untied"])
def test_a_directory_gives_the_same_model(config: LSTMConfig, tmp_path: Path) -> None:
    model = model_of(config).eval()
    save(model, None, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, LSTM) and again.config == config and not again.training
    assert torch.equal(again(TOKENS), model(TOKENS))
    half = load(tmp_path, dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_torch_takes_the_tensors_as_they_are(tmp_path: Path) -> None:
    model = model_of(EQUALLY_WIDE).eval()
    save(model, None, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    theirs = nn.LSTM(10, 16, 2, batch_first=True)
    theirs.load_state_dict({k.removeprefix("lstm."): v for k, v in stored.items() if k.startswith("lstm.")})
    states, _ = theirs(stored["embedding.weight"][TOKENS])
    torch.testing.assert_close(model(TOKENS), states @ stored["head.weight"].T, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    save(model_of(), None, tmp_path)
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    cases = [
        (config | {"hiden": 3}, weights, "unknown key 'hiden' for stemma-lstm .did you mean 'hidden'"),
        (config | {"layers": "two"}, weights, "layers is 'two', expected a positive whole number"),
        (config | {"inner": 16}, weights, r"tensor 'lstm.weight_ih_l0' is \[68, 12\], the config makes it \[64, 12\]"),
        (config, {**weights, "x": torch.ones(3)}, "tensor 'x' is not part of the model"),
    ]
    for content, tensors, message in cases:
        (tmp_path / "config.json").write_text(json.dumps(content))
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=message):
            load(tmp_path)
