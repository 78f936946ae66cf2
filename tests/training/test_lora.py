"""Adapting, training and merging models of every family."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.t5.model import T5, T5Config
from stemma.inference.prepacked import prepacked
from stemma.layers.lora import LoRALinear
from stemma.training.lora import LoRAConfig, add_lora, lora_layers, lora_parameters, merge_lora, without_lora

SMALL = dict(layers=2, hidden=24, heads=3, dropout=0.0, vocabulary=50)
MODELS = {
    "gpt": lambda: GPT(GPTConfig(**SMALL, context=16)),
    "bert": lambda: BERT(BERTConfig(**SMALL, context=16)),
    "glm": lambda: GLM(GLMConfig(**SMALL, context=16)),
    "t5": lambda: T5(T5Config(**SMALL, head_dim=8, feed_forward=40)),
    "t5 1.1": lambda: T5(T5Config(**SMALL, head_dim=8, feed_forward=40, gated=True, tie_output=False)),
    "unilm": lambda: BERT(BERTConfig(**SMALL, context=16, segments=6)),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def shaken(model: nn.Module) -> nn.Module:
    """Adapters as after some training."""
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.b, std=0.3)
    return model


def logits(model: nn.Module) -> Tensor:
    tokens = torch.arange(20).view(2, 10)
    return model(tokens, tokens.flip(1)) if isinstance(model, T5) else model(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_only_adapters_are_trained_and_merging_keeps_the_logits(name):
    model = built(name).double()
    plain, before = deepcopy(model), logits(model)
    add_lora(model, LoRAConfig(rank=2))
    torch.testing.assert_close(logits(model), before, atol=1e-9, rtol=1e-9)
    shaken(model)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 1e-2
    adapted.square().sum().backward()
    trained = {parameter for parameter in model.parameters() if parameter.grad is not None}
    assert trained == set(lora_parameters(model))
    per_block = {"t5": (6, 10), "t5 1.1": (7, 11)}.get(name, (6,))
    assert len(lora_layers(model)) == 2 * sum(per_block)
    assert merge_lora(model) is model and not lora_layers(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), adapted, atol=1e-9, rtol=1e-9)


def test_unmerging_returns_the_weights():
    model, plain = built("t5"), built("t5")
    add_lora(model, LoRAConfig(rank=2))
    layers = lora_layers(shaken(model))
    for layer in layers.values():
        layer.merge()
        layer.unmerge()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.base.weight, plain.get_submodule(name).weight, atol=1e-5, rtol=1e-5)


def test_a_model_is_its_base_inside_a_block():
    model = built("gpt")
    before = logits(model)
    add_lora(model, LoRAConfig(rank=2))
    adapted = logits(shaken(model))
    with without_lora(model):
        assert logits(model).equal(before)
        layer = lora_layers(model)["blocks.0.attention.query"]
        assert layer.weight is layer.base.weight  # what a packed product would be made of
    assert logits(model).equal(adapted) and not adapted.equal(before)
    with pytest.raises(ZeroDivisionError), without_lora(model):
        raise ZeroDivisionError
    assert logits(model).equal(adapted)


def test_targets_and_what_stays_trainable():
    model = nn.ModuleDict({"backbone": built("bert"), "output": nn.Linear(24, 2)})
    add_lora(model, LoRAConfig(targets=("query", "value")), trainable=("output", "backbone.pooler"))
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == {"query", "value"}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {f"{name}.{part}" for name in lora_layers(model) for part in "ab"}
    heads = {f"{head}.{kind}" for head in ("output", "backbone.pooler.dense") for kind in ("weight", "bias")}
    assert trainable == adapters | heads


def test_mistakes_change_nothing():
    model = built("gpt")
    with pytest.raises(InputError, match=r"no linear layer 'querry' in the blocks \(did you mean 'query'\?\)"):
        add_lora(model, LoRAConfig(targets=("querry",)))
    with pytest.raises(InputError, match="nothing is named 'head'"):
        add_lora(model, LoRAConfig(), trainable=("head",))
    assert not lora_layers(model) and all(parameter.requires_grad for parameter in model.parameters())
    add_lora(model, LoRAConfig())
    with pytest.raises(InputError, match="has adapters already"):
        add_lora(model, LoRAConfig())


@pytest.mark.parametrize(
    "options, message",
    [({"rank": 0}, "rank is 0"), ({"dropout": 1.0}, "dropout is 1.0"), ({"targets": "query"}, "targets is 'query'")],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        LoRAConfig(**options)


@pytest.mark.parametrize("release", [False, True])
def test_a_packed_model_decodes_with_its_adapters(release):
    model = built("gpt")
    add_lora(model, LoRAConfig(rank=2))
    with torch.no_grad():
        expected = logits(shaken(model))
        with prepacked(model, 2, release=release):
            torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits(model), expected, atol=0, rtol=0)
    assert all(isinstance(layer, LoRALinear) for layer in lora_layers(model).values())
