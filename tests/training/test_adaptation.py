"""Blocks that are compiled: each must be one graph, as every break hands a part of the block back to Python."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.t5.model import T5, T5Config
from stemma.training.distributed import blocks_of

SMALL = {"vocabulary": 48, "layers": 2, "hidden": 32, "heads": 2}
TOKENS = torch.arange(32).view(2, 16)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "gpt": (lambda: GPT(GPTConfig(**SMALL, context=16)), (TOKENS,)),
    "bert": (lambda: BERT(BERTConfig(**SMALL, context=16)), (TOKENS,)),
    "glm": (lambda: GLM(GLMConfig(**SMALL, context=16)), (TOKENS, torch.arange(16).expand(2, 2, 16))),
    "mistral": (
        lambda: Mistral(MistralConfig(**SMALL, context=16, key_value_heads=1, feed_forward=64, windows=(8,))),
        (TOKENS,),
    ),
    "t5": (lambda: T5(T5Config(**SMALL)), (TOKENS, TOKENS[:, :9])),
}


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", MODELS)
def test_a_block_is_one_graph(family: str, low: bool) -> None:
    torch.manual_seed(0)
    build, inputs = MODELS[family]
    model = build().eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        expected = model(*inputs)
        for block in blocks_of(model):
            block.compile(backend="eager", fullgraph=True)  # fullgraph: a break is an error
        actual = model(*inputs)
    tolerance = 5e-2 if low else 1e-5
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)
    actual.float().sum().backward()
    assert all(parameter.grad is not None for block in blocks_of(model) for parameter in block.parameters())
