"""With the cache the model computes what it computes without: rows of all lengths, layers with and without a band."""

import pytest
import torch

from stemma.families.gpt.model import GPT
from stemma.inference.cache import DenseCache
from stemma.inference.decoder import Decoder

VARIANTS = {
    "gpt1": {"norm": "post", "layers": 3},
    "gpt2": {},
    "gpt3": {"layers": 4, "attention_pattern": ("dense", "banded"), "band": 5},
    "banded": {"attention_pattern": ("banded",), "band": 3, "heads": 2, "tie_output": False},
    "relu": {"activation": "relu", "hidden": 48, "heads": 3, "feed_forward": 64},
}


@pytest.fixture
def model_of(make_model):
    return lambda variant: make_model(vocabulary=97, context=48, **VARIANTS[variant])


def random_prompts(lengths, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def next_logits(model: GPT, text: list[int]) -> torch.Tensor:
    """The plain way: the whole text through the model, no cache, alone."""
    return model(torch.tensor([text]))[0, -1]


@pytest.mark.parametrize("lengths", [(7,), (6, 6, 6), (1, 12, 4, 9), (20, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_with_the_cache_are_those_without(model_of, variant, lengths):
    model, prompts = model_of(variant), random_prompts(lengths)
    texts = [list(prompt) for prompt in prompts]
    decoder = Decoder(model, prompts, new_tokens=15)
    logits = decoder.read_prompts()
    assert logits.std() > 1  # so that the tolerance below is small
    for token in torch.randint(0, 97, (14, len(texts)), generator=torch.Generator().manual_seed(1)):
        expected = torch.stack([next_logits(model, text) for text in texts])
        assert torch.allclose(logits, expected, atol=1e-3), (logits - expected).abs().max()
        logits = decoder.step(token)
        for text, new in zip(texts, token.tolist(), strict=True):
            text.append(new)


def test_prompts_in_several_pieces(model_of, monkeypatch):
    monkeypatch.setattr("stemma.inference.decoder.PIECE_TOKENS", 10)
    model, prompts = model_of("gpt3"), random_prompts((3, 9, 14, 2, 2, 2))
    assert list(Decoder(model, prompts, new_tokens=1)._pieces()) == [[0], [1], [2], [3, 4, 5]]
    logits = Decoder(model, prompts, new_tokens=1).read_prompts()
    expected = torch.stack([next_logits(model, prompt) for prompt in prompts])
    assert torch.allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("variant", ["gpt2", "gpt3"])
@pytest.mark.parametrize("sizes", [(1, 4, 3), (6, 2), (8,)])
def test_several_tokens_at_a_time_after_others(model_of, variant, sizes):
    """The cache itself, fed in chunks: rows of equal length, and rows that begin with prompts of unequal length."""
    model = model_of(variant)
    for starts in ((0, 0), (3, 6)):
        prompts = random_prompts(starts, seed=2)
        chunked = torch.randint(0, 97, (2, sum(sizes)), generator=torch.Generator().manual_seed(3))
        cache = DenseCache.for_model(model, 2, 20)
        cache.begin(starts)
        with torch.no_grad():
            if max(starts):
                packed = cache.prompts([0, 1])
                model.hidden(torch.tensor([prompts[0] + prompts[1]]), cache=packed)
            logits = torch.cat([model(chunk, cache=cache) for chunk in chunked.split(sizes, dim=1)], dim=1)
            for row in range(2):
                alone = model(torch.tensor([prompts[row] + chunked[row].tolist()]))[0, starts[row] :]
                assert torch.allclose(logits[row], alone, atol=1e-3)


def test_rows_of_equal_length_need_no_mask():
    cache = DenseCache(layers=2, heads=2, head_dim=8, rows=3, capacity=16, windows=[None, 4])
    cache.begin([7, 7, 7])
    assert cache.mask(1) is None and cache.mask(1, 4) is None
    assert cache.positions(1).tolist() == [7]
    key = torch.randn(3, 2, 1, 8)
    assert cache.update(0, key, key)[0].shape == (3, 2, 8, 8)
    assert cache.update(1, key, key)[0].shape == (3, 2, 4, 8)  # a banded layer reads its band only
    cache.begin([7, 2, 7])
    assert cache.mask(1).key_padding.tolist() == [[True] * 8, [False] * 5 + [True] * 3, [True] * 8]
    assert cache.mask(1, 3) is None  # the band lies where all rows have tokens
    assert cache.positions(1).tolist() == [[7], [2], [7]]


def test_update_writes_in_place_and_returns_views():
    cache = DenseCache(layers=1, heads=2, head_dim=8, rows=2, capacity=5)
    address = cache.keys.data_ptr()
    for step in range(5):
        key = torch.full((2, 2, 1, 8), float(step))
        keys, values = cache.update(0, key, -key)
        assert keys.data_ptr() == address and values.data_ptr() == cache.values.data_ptr()
        assert keys[0, 0, :, 0].tolist() == [float(i) for i in range(step + 1)]
        cache.advance(1)


@pytest.mark.parametrize("variant", ["gpt2", "gpt3"])
def test_rows_that_leave_do_not_disturb_the_others(model_of, variant):
    model, prompts = model_of(variant), random_prompts((5, 11, 2, 8))
    decoder = Decoder(model, prompts, new_tokens=10)
    decoder.read_prompts()
    texts = [list(prompt) for prompt in prompts]
    for order in ([0, 1, 2, 3], [0, 3, 2], [2, 1], [0]):
        decoder.keep(order)
        texts = [texts[i] for i in order]
        tokens = torch.arange(len(order)) + 40
        logits = decoder.step(tokens)
        for text, token, row in zip(texts, tokens.tolist(), logits, strict=True):
            text.append(token)
            assert torch.allclose(row, next_logits(model, text), atol=1e-3)
    with pytest.raises(ValueError, match="row 0 cannot move up to 1"):
        decoder.keep([0, 0])


@pytest.mark.parametrize("variant", ["gpt2", "gpt3"])
def test_copies_of_a_prompt_and_their_reordering(model_of, variant):
    """As beams do: three rows a prompt, then rows that take over another's text."""
    model, prompts = model_of(variant), random_prompts((4, 9))
    decoder = Decoder(model, prompts, copies=[3, 3], new_tokens=10)
    assert decoder.read_prompts().shape == (6, 97)
    texts = [list(prompt) for prompt in prompts for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for parents in ([0, 1, 2, 3, 4, 5], [2, 2, 0, 5, 3, 3], [1, 0, 1, 3, 4, 3]):
        decoder.reorder(torch.tensor(parents))
        texts = [list(texts[i]) for i in parents]
        tokens = torch.randint(0, 97, (6,), generator=generator)
        logits = decoder.step(tokens)
        for text, token, row in zip(texts, tokens.tolist(), logits, strict=True):
            text.append(token)
            assert torch.allclose(row, next_logits(model, text), atol=1e-3)


def test_memory_is_what_the_docstring_says():
    cache = DenseCache(layers=3, heads=4, head_dim=16, rows=5, capacity=100, dtype=torch.bfloat16)
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 3 * 5 * 4 * 100 * 16 * 2


def test_a_bfloat16_model_is_no_less_exact_with_the_cache(model_of):
    prompts = random_prompts((9, 4))
    with torch.no_grad():
        exact = torch.stack([model_of("gpt3")(torch.tensor([prompt + [7, 8]]))[0, -1] for prompt in prompts])
        model = model_of("gpt3").to(torch.bfloat16)
        plain = torch.stack([next_logits(model, [*prompt, 7, 8]) for prompt in prompts]).float()
        decoder = Decoder(model, prompts, new_tokens=3)
        decoder.read_prompts()
        decoder.step(torch.tensor([7, 7]))
        cached = decoder.step(torch.tensor([8, 8]))
    assert decoder.cache.keys.dtype == torch.float32  # bfloat16 attention of single queries is slow on a CPU
    assert cached.dtype == torch.float32
    assert (cached - exact).abs().mean() < 1.2 * (plain - exact).abs().mean() < 0.1 * exact.std()
