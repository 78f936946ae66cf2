"""A step in fixed shapes gives the logits of one that follows the texts, compiled or not."""

import shutil

import pytest
import torch

from stemma.errors import InputError
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.t5.model import T5, T5Config
from stemma.inference import compiled_step
from stemma.inference.compiled_step import SLOTS, CompiledStep
from stemma.inference.decoder import Decoder
from stemma.inference.generate import generate
from stemma.inference.rolling_decoder import RollingDecoder

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [17]]
COPIES = [2, 1, 2]


@pytest.fixture
def gpt(make_model):
    return make_model(layers=3, attention_pattern=("dense", "banded"), band=6)


@pytest.fixture
def mistral():
    torch.manual_seed(0)
    config = MistralConfig(
        320, context=64, layers=3, hidden=32, heads=4, key_value_heads=2, feed_forward=48, windows=(6, None)
    )
    model = Mistral(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(compiled_step, "_compiled", lambda: compiled_step._step)


def logits_of(kind, model, compiled):
    """Of steps between which rows are exchanged and dropped, as beams and finished texts are."""
    decoder = kind(model, PROMPTS, copies=COPIES, new_tokens=20, compiled=compiled)
    logits = [decoder.read_prompts()]
    for step in range(20):
        if step == 6:
            decoder.reorder(torch.tensor([1, 1, 2, 4, 3]))
        if step == 12:
            decoder.keep([0, 4, 2])
        rows = len(decoder.cache.starts_and_ends()[0])
        logits.append(decoder.step(torch.arange(rows) * 7 + 20 + step))
    return logits


@pytest.mark.parametrize(("kind", "name"), [(Decoder, "gpt"), (RollingDecoder, "mistral")])
def test_fixed_shapes_change_nothing(kind, name, request, uncompiled):
    model = request.getfixturevalue(name)
    expected, found = logits_of(kind, model, False), logits_of(kind, model, True)
    assert [len(rows) for rows in found] == [5] * 13 + [3] * 8
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_shapes_are_fixed(gpt, uncompiled):
    """What is compiled sees the same shapes for prompts and rows of any number up to those of the cache."""
    shapes = []
    own = CompiledStep.attend

    def attend(self, layer, query, *others, **options):
        shapes.append((query.shape, self.keys[layer].shape, self.tokens.data_ptr()))
        return own(self, layer, query, *others, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledStep, "attend", attend)
        logits_of(Decoder, gpt, True)
    assert len(shapes) == 3 * 20 and len(set(shapes)) == 1
    assert shapes[0][1] == (5, 4, SLOTS, 8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler for torch.compile")
@pytest.mark.parametrize("name", ["gpt", "mistral"])
def test_compiled_steps_write_the_same_texts(name, request, tokenizer):
    model = request.getfixturevalue(name)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"max_new_tokens": 24, "temperature": 0.8, "samples": 2, "seed": 3, "stop": "lazy"}
    for prompts in (["the quick brown fox", "lazy"], ["jumps over the lazy dog", "sing"]):
        expected = generate(model, tokenizer, prompts, **options)
        found = generate(model, tokenizer, prompts, compiled=True, **options)
        assert [text.tokens for text in found] == [text.tokens for text in expected]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_what_has_no_fixed_shapes_is_refused(tokenizer, gpt):
    model = T5(T5Config(tokenizer.vocabulary, layers=1, hidden=32, heads=4, head_dim=8, feed_forward=64)).eval()
    with pytest.raises(InputError, match="compiled decoding is for models that attend to their prompt, not for a T5"):
        generate(model, tokenizer, "the", compiled=True)
    recurrent = LSTM(LSTMConfig(tokenizer.vocabulary, embedding=8, hidden=8)).eval()
    with pytest.raises(InputError, match="not for an LSTM"):
        generate(recurrent, tokenizer, "the", compiled=True)
    step = Decoder(gpt, PROMPTS, new_tokens=2, compiled=True)._compiled
    with pytest.raises(ValueError, match="no bias of the scores"):
        step.attend(0, *[torch.zeros(3, 4, 1, 8)] * 3, bias=torch.zeros(1, 4, 1, 1))
