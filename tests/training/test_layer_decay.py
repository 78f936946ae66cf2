"""Learning rates by layer: which parameter is how deep, and the rates and updates against lr * decay^depth."""

import pytest
import torch
from torch import nn

from stemma import families
from stemma.training.adafactor import Adafactor
from stemma.training.layer_decay import by_rate, depths
from stemma.training.optimizer import adamw

SMALL = {
    "gpt": {"vocabulary": 32, "context": 8, "layers": 3, "hidden": 8, "heads": 2},
    "bert": {"vocabulary": 32, "context": 8, "layers": 3, "hidden": 8, "heads": 2},
    "glm": {"vocabulary": 32, "context": 8, "layers": 3, "hidden": 8, "heads": 2},
    "lstm": {"vocabulary": 32, "layers": 3, "embedding": 8, "hidden": 8},
    "t5": {"vocabulary": 32, "layers": 3, "hidden": 8, "heads": 2, "head_dim": 4, "feed_forward": 8},
}
FIRST = {
    "gpt": ["token_embedding.weight", "position_embedding.weight"],
    "bert": [f"embeddings.{part}.weight" for part in ("token", "position", "segment", "norm")]
    + ["embeddings.norm.bias"],
    "glm": ["token_embedding.weight", "position_embedding.weight", "block_position_embedding.weight"],
    "lstm": ["token_embedding.weight"],
    "t5": ["token_embedding.weight", "encoder.relative_bias.weight", "decoder.relative_bias.weight"],
}


def model_of(family: str) -> nn.Module:
    branch = families.FAMILIES[family]
    return branch.model(branch.config(**SMALL[family]))  # type: ignore[call-arg]


@pytest.mark.parametrize("family", list(SMALL))
def test_each_layer_is_one_deeper_than_the_one_above_it(family: str) -> None:
    model = model_of(family)
    found = depths(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, depth in found.items():
        numbers = [int(part) for part in name.split(".") if part.isdecimal()]
        expected = 3 - numbers[0] if "blocks" in name else 4 if name in FIRST[family] else 0
        assert depth == expected, name
    assert {name for name, depth in found.items() if depth == 4} == set(FIRST[family])
    # The same below an output layer, and without what is frozen.
    wrapped = nn.ModuleDict({"backbone": model, "output": nn.Linear(8, 2)})
    model.get_parameter(FIRST[family][0]).requires_grad_(False)
    below = depths(wrapped)
    assert {name.removeprefix("backbone."): depth for name, depth in below.items() if "backbone" in name} == {
        name: depth for name, depth in found.items() if name != FIRST[family][0]
    }
    assert below["output.weight"] == below["output.bias"] == 0


@pytest.mark.parametrize("kind", ["adamw", "uncorrected", "adafactor"])
def test_rates_and_updates_equal_the_closed_form(kind: str) -> None:
    torch.manual_seed(0)
    model = model_of("gpt")
    if kind == "adafactor":
        groups = [{"params": parameters, "scale": scale} for scale, parameters in by_rate(model, 0.5)]
        optimizer: torch.optim.Optimizer = Adafactor(groups, learning_rate=0.01)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["scale"]
    else:
        optimizer = adamw(model, learning_rate=0.01, weight_decay=0.1, layer_decay=0.5, bias_correction=kind == "adamw")
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        depth = 0 if name.startswith("final") else 4 if "embedding" in name else 3 - int(name.split(".")[1])
        assert rates[id(parameter)] == pytest.approx(0.01 * 0.5**depth, rel=1e-12)
    # One update with each rate alone moves a parameter as the update of all does.
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        alone = nn.Parameter(before[name].clone())
        alone.grad = parameter.grad
        rate = rates[id(parameter)]
        if kind == "adafactor":
            Adafactor([alone], learning_rate=rate).step()
        else:
            adamw(
                nn.ParameterList([alone]), learning_rate=rate, weight_decay=0.1, bias_correction=kind == "adamw"
            ).step()
        torch.testing.assert_close(parameter, alone, rtol=0, atol=1e-8)


def test_without_decay_there_is_one_rate() -> None:
    model = model_of("bert")
    (scale, parameters), *others = by_rate(model, None)
    assert scale == 1.0 and not others and len(parameters) == len(list(model.parameters()))
