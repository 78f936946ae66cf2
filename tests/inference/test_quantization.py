"""Models of every family with rounded weights: near their own results, smaller, and measured."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.t5.model import T5, T5Config
from stemma.inference import quantized_products
from stemma.inference.decoder import Decoder
from stemma.inference.engine import Engine
from stemma.inference.prepacked import prepacked
from stemma.inference.quantization import quantize_, quantized
from stemma.inference.quantized_products import QuantizedLinear, is_quantized
from stemma.inference.requests import Request
from stemma.inference.rolling_decoder import RollingDecoder
from stemma.inference.sampling import Sampling
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

SMALL = {"layers": 2, "hidden": 64, "heads": 4}
MISTRAL = {**SMALL, "vocabulary": 97, "key_value_heads": 2, "feed_forward": 96, "windows": (6,)}
FAMILIES = {
    "gpt": lambda: GPT(GPTConfig(**SMALL, vocabulary=97, context=64)),
    "gpt, untied, padded": lambda: GPT(
        GPTConfig(**SMALL, vocabulary=97, context=64, tie_output=False, vocabulary_multiple=64)
    ),
    "mistral": lambda: Mistral(MistralConfig(**MISTRAL)),
    "mistral, tied": lambda: Mistral(MistralConfig(**MISTRAL, tie_output=True)),
    "mixtral": lambda: Mistral(MistralConfig(**MISTRAL, experts=3)),
    "t5": lambda: T5(T5Config(**SMALL, vocabulary=97, head_dim=16, feed_forward=96, vocabulary_multiple=64)),
    "t5, gated": lambda: T5(
        T5Config(**SMALL, vocabulary=97, head_dim=16, feed_forward=96, gated=True, tie_output=False)
    ),
    "bert": lambda: BERT(BERTConfig(**SMALL, vocabulary=97, context=64)),
    "glm": lambda: GLM(GLMConfig(**SMALL, vocabulary=97, context=64, vocabulary_multiple=64)),
}
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


def make(family: str, scale: float = 2.0) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 and not isinstance(model, T5) else 1)
    return model


def logits_of(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens, tokens) if isinstance(model, T5) else model.logits(model.hidden(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_and_the_model_is_left_alone(family):
    model = make(family)
    before = copy.deepcopy(model.state_dict())
    own = logits_of(model)
    for kind, most in (("int8", 0.03), ("int4", 0.35)):
        error = (logits_of(quantized(model, kind)) - own).std() / own.std()
        assert 1e-4 < error < most, f"{kind}: {error}"
    assert torch.equal(logits_of(model), own)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["int8", "int4:64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_and_plain_products_agree(family, kind, monkeypatch):
    """The plain ones round no states and need no private operator."""
    fast = logits_of(quantized(make(family), kind))
    monkeypatch.setattr(quantized_products, "_is_right", lambda *_: False)
    plain = logits_of(quantized(make(family), kind))
    assert (fast - plain).std() < 0.04 * plain.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_held_as_floats_but_embeddings_and_routers(family):
    model = quantize_(make(family), "int8")
    left = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name.rpartition(".")[2] for name in left} <= {"router", "dense"}
    assert all(module.out_features < 16 for module in model.modules() if isinstance(module, nn.Linear))
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1 and "norm" not in name}
    allowed = ("embedding", "router", "relative_bias", "next_sentence")
    assert all(any(word in name for word in allowed) for name in matrices), matrices
    assert any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_memory_is_announced_and_shrinks(caplog):
    torch.manual_seed(0)
    model = Mistral(MistralConfig(**{**MISTRAL, "hidden": 256, "feed_forward": 512}))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    floats, weights = sum(module.weight.nbytes for module in linear), sum(module.weight.numel() for module in linear)
    outputs = sum(module.out_features for module in linear)
    with caplog.at_level(logging.INFO):
        for kind, bits in (("int8", 8), ("int4:128", 4.25), ("int4", 5)):
            maps = {m for m in quantized(model, kind).modules() if isinstance(m, QuantizedLinear)}
            held = sum(module.product.bytes for module in maps)
            assert weights * bits / 8 <= held <= weights * bits / 8 * 1.05 + 12 * outputs < 0.35 * floats
    assert "9 linear maps in int8 by" in caplog.text and f"1 MiB instead of {floats / 2**20:.0f}" in caplog.text


def test_one_of_joint_maps_can_be_asked_alone():
    model = make("gpt")
    attention, x = model.blocks[0].attention, torch.randn(2, 5, 64)
    rounded = quantized(model, "int8").blocks[0].attention
    for name in ("query", "key", "value"):
        own, ours = getattr(attention, name), getattr(rounded, name)
        assert (ours.weight - own.weight).abs().max() <= 0.51 * own.weight.abs().max() / 127
        assert torch.equal(ours.bias, own.bias)
        assert (ours(x) - own(x)).std() < 0.02 * own(x).std()


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_decoding_through_the_cache_is_the_whole_text_at_once(family):
    model = quantize_(make(family, 4.0), "int8")
    tokens = torch.randint(0, 97, (1, 24), generator=torch.Generator().manual_seed(1))
    decoder = RollingDecoder(model, [tokens[0, :10].tolist()], new_tokens=20)
    steps = [decoder.read_prompts(), *(decoder.step(tokens[:, position]) for position in range(10, 24))]
    with torch.no_grad():
        whole = model(tokens)[0, 9:]
    # What differs by rounding may be rounded to the next level of int8.
    assert (torch.cat(steps) - whole).abs().max() < 0.1 * whole.std()


def test_prepacking_leaves_rounded_weights_alone(caplog):
    model = quantize_(make("gpt"), "int8")
    own = logits_of(model)
    with caplog.at_level(logging.INFO), prepacked(model, 1, release=None):
        assert torch.equal(logits_of(model), own)
    assert "its weights are quantised" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(dtype):
    model = make("mistral").to(dtype)
    for kind in ("int8", "int4"):
        rounded = logits_of(quantized(model, kind))
        assert rounded.dtype == dtype
        assert (rounded.float() - logits_of(make("mistral"))).std() < 0.35 * rounded.float().std()


def test_no_gradients_are_promised():
    model = quantize_(make("gpt"), "int8")
    assert not model(torch.tensor([[1, 2, 3]])).requires_grad
    assert not model.training


def test_mistakes_are_one_line():
    model = quantize_(make("gpt"), "int8")
    assert is_quantized(model)
    with pytest.raises(InputError, match="quantised already"):
        quantize_(model, "int8")
    with pytest.raises(InputError, match="are not saved"):
        model.state_dict()
    with pytest.raises(InputError, match=r"'int4:65' \(did you mean 'int4:64'\?\): expected one of int8, int4,"):
        quantize_(make("gpt"), "int4:65")


@pytest.fixture(scope="module")
def trained():
    """A GPT that has learnt a sentence's letters in 200 updates, and a text to score."""
    torch.manual_seed(0)
    text = torch.tensor(list((TEXT * 12).encode())) % 97
    model = GPT(GPTConfig(**SMALL, vocabulary=97, context=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        starts = torch.randint(0, len(text) - 33, (8, 1))
        piece = text[starts + torch.arange(33)]
        F.cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), text[: 32 * 16 + 1]


@torch.no_grad()
def loss_and_best(model, text):
    hidden = model.hidden(text[:-1].view(16, 32), mask=Mask(causal=True)).flatten(0, 1)
    loss = linear_cross_entropy(hidden, model.output_weight, text[1:])
    assert torch.allclose(loss, F.cross_entropy(model.logits(hidden), text[1:]), atol=1e-5), "the one that is measured"
    return loss.item(), model.logits(hidden).argmax(-1)


@pytest.mark.parametrize(("kind", "rise", "agreement"), [("int8", 0.002, 0.99), ("int4", 0.05, 0.95)])
def test_what_rounding_costs_a_trained_model(trained, kind, rise, agreement, record_property):
    model, text = trained
    before, best = loss_and_best(model, text)
    after, rounded_best = loss_and_best(quantized(model, kind), text)
    assert before < 0.7, "it has learnt"
    same = (best == rounded_best).float().mean().item()
    record_property("loss", f"{before:.4f} -> {after:.4f}, {same:.1%} of the likeliest tokens are the same")
    assert before != after and after < before + rise
    assert same >= agreement


def test_greedy_text_of_a_trained_model_is_the_same(trained):
    model, text = trained
    written = []
    for one in (model, quantized(model, "int8")):
        decoder, tokens = Decoder(one, [text[:10].tolist()], new_tokens=40), []
        logits = decoder.read_prompts()
        for _ in range(40):
            tokens.append(logits.argmax(-1))
            logits = decoder.step(tokens[-1])
        written.append(torch.cat(tokens).tolist())
    assert written[0] == written[1] and len(set(written[0])) > 5


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_engine_serves_it_in_any_batch(trained, tokenizer, kind):
    """Each row is rounded by itself, so that a text is the same alone and beside others."""
    model, text = trained
    model = quantized(model, kind)
    prompts = [text[start : start + 12].tolist() for start in (0, 7, 30)]
    requests = [Request(prompt, 20, Sampling(temperature=0)) for prompt in prompts]
    together = [family[0].new for family in Engine(model, tokenizer, memory=0).run(requests)]
    alone = [
        Engine(model, tokenizer, memory=0).run([Request(prompt, 20, Sampling(temperature=0))])[0][0].new
        for prompt in prompts
    ]
    assert together == alone
    written = sum(together, [])
    assert len(written) > 10 and len(set(written)) > 5
