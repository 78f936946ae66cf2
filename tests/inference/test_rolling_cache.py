"""With the rolling cache the model computes what it computes without: prompts in pieces of any size, rows that wrap at
different times, layers with different windows and with none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference import decoder
from stemma.inference.generate import generate
from stemma.inference.rolling_cache import RollingCache
from stemma.inference.rolling_decoder import RollingDecoder
from stemma.layers import masks, tiled_attention

WINDOWS = {"window": (6,), "mixed": (3, None, 6), "full": (None,), "one": (1, 6)}


@pytest.fixture(params=["dense", "tiles"])
def road(request, monkeypatch):
    monkeypatch.setattr(masks, "LEAST_PAIRS", 0 if request.param == "tiles" else 10**9)
    monkeypatch.setattr(tiled_attention, "LEAST_QUERIES", 3)


def model_of(windows: tuple[int | None, ...] = (6,), **changes) -> Mistral:
    torch.manual_seed(0)
    small = {"vocabulary": 97, "context": 400, "layers": 3, "hidden": 32, "heads": 4, "key_value_heads": 2}
    model = Mistral(MistralConfig(**{**small, "feed_forward": 48, "windows": windows, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


def texts_of(lengths, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


def assert_logits(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.5  # so that the tolerance means something
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@torch.inference_mode()
def test_pieces_of_every_size_and_steps_after_them(windows):
    """Prompt of 20 in pieces of 1 ... 20, then 20 tokens one by one (three times round a window of 6)."""
    model, (text,) = model_of(windows), texts_of([40])
    expected = model(torch.tensor([text]))[0]
    for size in range(1, 21):
        cache = RollingCache.for_model(model, 1, 40)
        logits = []
        for start in range(0, 20, size):
            piece = text[start : min(start + size, 20)]
            logits.append(model(torch.tensor([piece]), cache=cache.pieces([0], [len(piece)]))[0])
        for token in text[20:]:
            logits.append(model(torch.tensor([[token]]), cache=cache)[0])
        assert_logits(torch.cat(logits), expected)


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("size", [1, 5, 6, 7, 15, 32])  # 1, W - 1, W, W + 1, 2 W + 3, the prompts' length
@pytest.mark.parametrize("windows", [(6,), (3, None, 6)], ids=["window", "mixed"])
@torch.inference_mode()
def test_ragged_rows_in_pieces_then_together(windows, size):
    """Prompts of 1, W, W + 1, 5 W + 2 in one batch: they wrap at different times, and go on together for 4 W steps."""
    model, prompts = model_of(windows), texts_of([1, 6, 7, 32])
    more = texts_of([24] * 4, seed=1)
    expected = [model(torch.tensor([prompt + new]))[0] for prompt, new in zip(prompts, more, strict=True)]
    cache = RollingCache.for_model(model, 4, 56)
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    for start in range(0, 32, size):
        parts = [(row, prompt[start : start + size]) for row, prompt in enumerate(prompts) if start < len(prompt)]
        rows, lengths = [row for row, _ in parts], [len(part) for _, part in parts]
        tokens = torch.tensor([[token for _, part in parts for token in part]])
        logits = model(tokens, cache=cache.pieces(rows, lengths))[0]
        for row, part in zip(rows, logits.split(lengths), strict=True):
            found[row].append(part)
    for step in range(24):
        logits = model(torch.tensor([[new[step]] for new in more]), cache=cache)
        for row in range(4):
            found[row].append(logits[row])
    for row in range(4):
        assert_logits(torch.cat(found[row]), expected[row])


@torch.inference_mode()
def test_the_buffers_do_not_depend_on_the_pieces():
    model, (text,) = model_of((6, None)), texts_of([32])
    caches = []
    for size in (32, 1, 5, 6, 13):
        cache = RollingCache.for_model(model, 1, 40)
        for start in range(0, 32, size):
            piece = text[start : start + size]
            model(torch.tensor([piece]), cache=cache.pieces([0], [len(piece)]))
        caches.append(cache)
    for cache in caches[1:]:
        for ours, whole in zip([*cache.keys, *cache.values], [*caches[0].keys, *caches[0].values], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
    assert [keys.shape[2] for keys in cache.keys] == [6, 40, 6]


@torch.inference_mode()
def test_position_i_lies_in_slot_i_mod_w_and_is_written_in_place():
    cache = RollingCache(heads=1, head_dim=2, rows=2, capacity=100, windows=[4])
    address = cache.keys[0].data_ptr()
    # Row 1 begins with a piece of 6 tokens, of which a window of 4 keeps the last.
    view = cache.pieces([1], [6])
    numbers = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 1, 6, 2)
    view.update(0, numbers, -numbers)
    view.advance(6)
    assert cache.keys[0][1, 0, :, 0].tolist() == [4, 5, 2, 3]
    assert cache.positions(1).tolist() == [[0], [6]]
    for step in range(9):
        new = torch.tensor([step, 6.0 + step]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
        keys, values = cache.update(0, new, -new)
        assert keys.data_ptr() == address and torch.equal(values, -keys)
        mask = cache.mask(1, 4)
        seen = keys[..., 0].squeeze(1) if mask is None else torch.where(mask.key_padding, keys[:, 0, :, 0], -1)
        assert sorted(seen[0][seen[0] >= 0].tolist()) == list(range(max(0, step - 3), step + 1))
        assert sorted(seen[1].tolist()) == list(range(3 + step, 7 + step))
        assert (mask is None) == (step >= 3)  # both buffers are full
        for row, newest in enumerate((step, 6 + step)):
            assert cache.keys[0][row, 0, newest % 4, 0] == newest
        cache.advance(1)


@torch.inference_mode()
def test_memory_is_constant_over_twenty_windows():
    model = model_of((6,))
    cache = RollingCache.for_model(model, 2, 6)
    assert cache.nbytes == 2 * 2 * 3 * 2 * 6 * 8 * 4 and cache.limit is None
    buffers = [buffer.data_ptr() for buffer in [*cache.keys, *cache.values]]
    text = texts_of([120, 120])
    expected = model(torch.tensor(text))
    for step, tokens in enumerate(zip(*text, strict=True)):
        logits = model(torch.tensor(tokens).unsqueeze(1), cache=cache)[:, 0]
        torch.testing.assert_close(logits, expected[:, step], rtol=0, atol=1e-5)
    assert [buffer.data_ptr() for buffer in [*cache.keys, *cache.values]] == buffers


def test_a_layer_without_window_has_a_limit():
    cache = RollingCache(heads=1, head_dim=2, rows=1, capacity=3, windows=[2, None])
    cache.advance(3)
    with pytest.raises(ValueError, match="a text of 4 tokens in a cache for 3"):
        cache.advance(1)


@torch.no_grad()
def next_logits(model: Mistral, text: list[int]) -> torch.Tensor:
    return model(torch.tensor([text]))[0, -1]


@pytest.mark.parametrize("windows", [(6,), (3, None, 6)], ids=["window", "mixed"])
def test_the_decoder_reads_prompts_in_pieces_and_goes_on(windows, monkeypatch):
    monkeypatch.setattr(decoder, "PIECE_TOKENS", 8)
    model, texts = model_of(windows), texts_of([3, 19, 8, 1])
    decoding = RollingDecoder(model, [list(text) for text in texts], new_tokens=20)
    assert list(decoding._pieces_of_prompts())[:2] == [[(0, 0, 3), (1, 0, 5)], [(1, 5, 13)]]
    logits = decoding.read_prompts()
    for token in torch.randint(0, 97, (19, 4), generator=torch.Generator().manual_seed(1)):
        assert_logits(logits, torch.stack([next_logits(model, text) for text in texts]))
        logits = decoding.step(token)
        for text, new in zip(texts, token.tolist(), strict=True):
            text.append(new)


@pytest.mark.parametrize("windows", [(6,), (3, None, 6)], ids=["window", "mixed"])
def test_rows_that_leave_and_rows_that_follow_others(windows):
    model, prompts = model_of(windows), texts_of([4, 9])
    decoding = RollingDecoder(model, prompts, copies=[3, 3], new_tokens=30)
    decoding.read_prompts()
    texts = [list(prompt) for prompt in prompts for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for parents in ([0, 1, 2, 3, 4, 5], [2, 2, 0, 5, 3, 3], [1, 0, 1, 3, 4, 3]) * 3:
        decoding.reorder(torch.tensor(parents))
        texts = [list(texts[i]) for i in parents]
        tokens = torch.randint(0, 97, (6,), generator=generator)
        logits = decoding.step(tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        assert_logits(logits, torch.stack([next_logits(model, text) for text in texts]))
    for order in ([0, 5, 2, 3], [0, 3, 2], [2, 1], [1]):
        decoding.keep(order)
        texts = [texts[i] for i in order]
        tokens = torch.randint(0, 97, (len(order),), generator=generator)
        logits = decoding.step(tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        assert_logits(logits, torch.stack([next_logits(model, text) for text in texts]))
    with pytest.raises(ValueError, match="row 0 cannot move up to 1"):
        decoding.keep([0, 0])


@pytest.mark.parametrize("experts", [0, 4])
def test_greedy_text_is_that_of_transformers(experts, tokenizer, tmp_path):
    """The published directory in transformers' own generate, prompts longer and shorter than the window together."""
    import transformers

    from stemma.families import save

    model = model_of((6,), vocabulary=320, experts=experts)
    save(model, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    prompts = ["the quick brown fox jumps over the lazy dog", "sing"]
    found = generate(model, tokenizer, prompts, max_new_tokens=30, temperature=0.0)
    for prompt, generation in zip(prompts, found, strict=True):
        tokens = tokenizer.encode(prompt)
        for token in generation.tokens:  # without any cache
            with torch.no_grad():
                assert int(theirs(torch.tensor([tokens])).logits[0, -1].argmax()) == token
            tokens.append(token)
        assert len(generation.tokens) == 30 or generation.finish_reason == "end"


def test_a_bfloat16_model_is_no_less_exact_with_the_cache():
    prompts = texts_of([9, 4])
    with torch.no_grad():
        exact = torch.stack([next_logits(model_of(), [*prompt, 7]) for prompt in prompts])
        model = model_of().to(torch.bfloat16)
        plain = torch.stack([next_logits(model, [*prompt, 7]) for prompt in prompts]).float()
    decoding = RollingDecoder(model, prompts, new_tokens=3)
    decoding.read_prompts()
    cached = decoding.step(torch.tensor([7, 7]))
    assert decoding.cache.keys[0].dtype == torch.float32 and cached.dtype == torch.float32
    assert (cached - exact).abs().mean() < 1.2 * (plain - exact).abs().mean() < 0.1 * exact.std()


_PEAK = """
import sys, torch
from pathlib import Path
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference import decoder
from stemma.inference.rolling_decoder import RollingDecoder
length, decoder.PIECE_TOKENS = int(sys.argv[1]), int(sys.argv[2])
config = MistralConfig(
    vocabulary=64, context=40000, layers=2, hidden=128, heads=4, key_value_heads=2, feed_forward=256, windows=(256,)
)
model = Mistral(config).eval()
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
RollingDecoder(model, [[1] * 64], new_tokens=1).read_prompts()
prompt = torch.randint(0, 64, (length,)).tolist()
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
RollingDecoder(model, [prompt], new_tokens=1).read_prompts()
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
def test_the_peak_memory_of_a_long_prompt_is_that_of_a_piece():
    def peak(length: int, piece: int) -> float:
        command = [sys.executable, "-c", _PEAK, str(length), str(piece)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    whole, short, long = peak(32768, 32768), peak(2048, 512), peak(32768, 512)
    assert long < short + 4 < 0.3 * whole  # MiB
