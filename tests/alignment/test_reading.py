"""Samples are read as the engine reads them when it writes, alone or packed."""

import numpy as np
import pytest
import torch
from tiny_models import model_of, tokenizer_of

from stemma.alignment.dpo import response_log_probabilities
from stemma.alignment.reading import CausalReading, Sample, reading_of
from stemma.errors import InputError
from stemma.families.t5.model import T5
from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.layers.masks import Mask
from stemma.layers.token_log_probabilities import token_log_probabilities

WRITING = ("gpt", "mistral", "mixtral", "glm", "t5")


def spread(model):
    """Make random weights large enough for position and context to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 if isinstance(model, T5) else 4)
    return model


@pytest.mark.parametrize("family", WRITING)
def test_log_probabilities_are_those_with_which_the_engine_wrote(family):
    model, tokenizer = spread(model_of(family)), tokenizer_of(family)
    reading = reading_of(model, tokenizer)
    engine = Engine(model, tokenizer)
    prompts = [tokenizer.encode(text) for text in ("the quick brown fox", "a cat", "who sees the lazy dog in Paris")]
    for number, prompt in enumerate(prompts):
        request = Request(prompt, 5 + number, log_probabilities=0, seed=number, ignore_end=True)
        engine.submit(request)
    written: dict[int, list] = {}
    while engine.busy:
        for update in engine.step():
            if update.token is not None:
                written.setdefault(update.request, []).append(update.token)
    texts = [written[key] for key in sorted(written)]
    assert [len(text) for text in texts] == [5, 6, 7]
    samples = [Sample(prompt, [one.token for one in text]) for prompt, text in zip(prompts, texts, strict=True)]
    batch = reading.batch(samples)
    kept = batch["targets"] >= 0
    states = reading.states(model, batch)
    found = token_log_probabilities(states[kept], model.output_weight, batch["targets"][kept])
    expected = [one.log_probability for text in texts for one in text]
    np.testing.assert_allclose(found.detach(), expected, atol=2e-5)
    assert batch["reads"].tolist() == [6, 7, 8]
    sums = response_log_probabilities(model, reading, batch)
    np.testing.assert_allclose(sums.detach(), [part.sum() for part in np.split(np.array(expected), [5, 11])], atol=1e-4)


@pytest.mark.parametrize("family", WRITING)
def test_packed_padded_and_alone_are_the_same(family):
    model, tokenizer = spread(model_of(family)), tokenizer_of(family)
    lengths = [(3, 4), (9, 2), (1, 1), (5, 11), (2, 3), (12, 6)]
    rng = np.random.default_rng(0)
    samples = [Sample(*(rng.integers(5, 100, size).tolist() for size in pair)) for pair in lengths]
    packed, padded = (reading_of(model, tokenizer, packing=packing) for packing in (True, False))
    alone = torch.cat([padded.states(model, padded.batch([sample])) for sample in samples])
    for reading in (packed, padded):
        torch.testing.assert_close(reading.states(model, reading.batch(samples)), alone, atol=1e-5, rtol=1e-5)
    if isinstance(packed, CausalReading):
        assert len(packed.batch(samples)["tokens"]) < len(padded.batch(samples)["tokens"])
        # left-padded, as transformers' generate has them
        width = max(len(sample) for sample in samples)
        tokens = torch.zeros(len(samples), width, dtype=torch.long)
        real = torch.zeros(len(samples), width, dtype=torch.bool)
        for row, sample in enumerate(samples):
            tokens[row, -len(sample) :] = torch.tensor([*sample.prompt, *sample.response])
            real[row, -len(sample) :] = True
        hidden = model.hidden(tokens, mask=Mask(causal=True, key_padding=real))
        read = torch.cat([hidden[row, -len(one.response) - 1 :] for row, one in enumerate(samples)])
        torch.testing.assert_close(read, alone, atol=1e-5, rtol=1e-5)


def test_an_empty_prompt_begins_where_texts_begin():
    model, tokenizer = model_of("gpt"), tokenizer_of("gpt")
    reading = reading_of(model, tokenizer)
    assert reading.frame(Sample([], [7, 8]))["tokens"].tolist() == [tokenizer.separator, 7, 8]


def test_what_cannot_be_aligned_is_told():
    with pytest.raises(InputError, match="a BERT cannot be aligned"):
        reading_of(model_of("bert"), tokenizer_of("bert"))


def test_log_probabilities_in_pieces_have_the_same_values_and_gradients(monkeypatch):
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16, dtype=torch.float64), torch.randn(50, 16, dtype=torch.float64)
    targets, upstream = torch.randint(50, (300,)), torch.randn(300)
    results = []
    for size in (1 << 30, 1):
        monkeypatch.setattr("stemma.layers.token_log_probabilities.CHUNK_BYTES", size)
        parts = [part.clone().requires_grad_() for part in (hidden, weight)]
        found = token_log_probabilities(*parts, targets, temperature=0.7)
        (found * upstream).sum().backward()
        results.append([found.detach(), *(part.grad for part in parts)])
    expected = torch.log_softmax(hidden @ weight.T / 0.7, 1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(results[0][0], expected.float(), atol=1e-5, rtol=1e-5)
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-5)
