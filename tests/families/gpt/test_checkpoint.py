"""GPT checkpoints against Hugging Face transformers: same tensors, same logits, same gradients."""

import json
import logging
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.gpt.checkpoint import to_published
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

GPT2_SHAPES = {
    "odd vocabulary": dict(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4),
    "inner width, one head": dict(vocab_size=128, n_positions=17, n_embd=24, n_layer=1, n_head=1, n_inner=40),
    "erf gelu, untied": dict(
        vocab_size=131, n_positions=20, n_embd=30, n_layer=3, n_head=5, activation_function="gelu",
        tie_word_embeddings=False, layer_norm_epsilon=1e-3,
    ),
    "relu": dict(vocab_size=65, n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function="relu"),
}  # fmt: skip
GPT1_SHAPES = {
    "gpt1": dict(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4),
    "gpt1 relu, untied": dict(
        vocab_size=64, n_positions=16, n_embd=30, n_layer=3, n_head=5, afn="relu", tie_word_embeddings=False
    ),
}
SHAPES = {**GPT2_SHAPES, **GPT1_SHAPES}


def reference(shape: str, **extra: object) -> nn.Module:
    """A transformers model in which every parameter matters: nothing is left at 0 or 1."""
    options = {**SHAPES[shape], **extra, "bos_token_id": None, "eos_token_id": None}
    if shape in GPT2_SHAPES:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, attn_implementation="eager"))
    else:
        model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**options))
    return randomized(model)


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if re.search(r"(ln_\w|norm)\.weight", name):
                parameter += 1.0
    return model.eval()


def some_tokens(vocabulary: int, length: int, batch: int = 3) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the scale of what is compared."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.abs().max()), 1e-3))


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert not ours.training
    tokens = some_tokens(theirs.config.vocab_size, theirs.config.n_positions)

    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)

    F.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    hidden = ours.hidden(tokens)[:, :-1].flatten(0, 1)
    linear_cross_entropy(hidden, ours.output_weight, tokens[:, 1:].flatten()).backward()
    gradients = deepcopy(ours)
    for parameter, source in zip(gradients.parameters(), ours.parameters(), strict=True):
        assert source.grad is not None
        parameter.data = source.grad
    published = dict(to_published(gradients)[1])
    expected_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert published.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert_close(published[name], gradient)


@pytest.mark.parametrize("shape", ["odd vocabulary", "gpt1"])
def test_left_padding_with_mask_and_positions(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = some_tokens(theirs.config.vocab_size, 12)
    real = torch.arange(12) >= torch.tensor([[0], [3], [7]])
    positions = (real.cumsum(1) - 1).clamp_min(0)
    expected = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
    mask = Mask(causal=True, key_padding=real)
    for logits in (ours(tokens, mask=mask), ours(tokens, mask=mask, positions=positions)):
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)
    # The mask does something, and a row's text is what it is without its padding.
    assert (ours(tokens)[2, 7:] - expected[2, 7:]).abs().max() > 0.01
    torch.testing.assert_close(ours(tokens[2:, 7:])[0], expected[2, 7:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(scale_attn_weights=False),
        dict(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False, reorder_and_upcast_attn=True),
    ],
    ids=["by layer", "unscaled", "all"],
)
def test_attention_scales_are_honoured(options: dict[str, bool], tmp_path: Path) -> None:
    theirs = reference("erf gelu, untied", **options)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    tokens = some_tokens(131, 20)
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)
    assert (reference("erf gelu, untied")(tokens).logits - expected).abs().max() > 0.01
    # What is published again computes the same without the options.
    save(ours, None, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again(tokens).logits, expected, rtol=0, atol=1e-5)


def test_scores_are_kept_in_float32_in_low_precision() -> None:
    """What `reorder_and_upcast_attn` asks for: scores near 300, whose bfloat16 neighbours are 2 apart."""
    from stemma.layers.attention import attention

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 32, 64, generator=generator).bfloat16() for _ in range(3))
    query, key = query * 8, key * 8
    exact = attention(query.double(), key.double(), value.double(), Mask(causal=True))
    ours = attention(query, key, value, Mask(causal=True))
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_load_then_save_gives_the_same_files(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), None, tmp_path / "ours")
    expected, found = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    before = theirs.config.to_dict()
    after = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    assert {key: after[key] for key in before if key not in ("_name_or_path", "n_inner")} == {
        key: value for key, value in before.items() if key not in ("_name_or_path", "n_inner")
    }
    assert after.get("n_inner") == before.get("n_inner")


OWN_CONFIGS = {
    "gpt2": GPTConfig(vocabulary=70, context=16, layers=2, hidden=24, heads=3),
    "gpt2 untied, inner, relu": GPTConfig(
        vocabulary=64, context=16, layers=2, hidden=24, heads=3, feed_forward=36, activation="relu", tie_output=False
    ),
    "gpt2 erf": GPTConfig(vocabulary=70, context=16, layers=1, hidden=24, heads=3, activation="gelu", dropout=0.1),
    "band as wide as the context": GPTConfig(
        vocabulary=70, context=16, layers=2, hidden=24, heads=3, attention_pattern=("dense", "banded"), band=16
    ),
    "gpt1": GPTConfig(vocabulary=70, context=16, layers=2, hidden=24, heads=3, norm="post", position_std=0.02),
    "gpt1 untied": GPTConfig(vocabulary=70, context=16, layers=2, hidden=24, heads=3, norm="post", tie_output=False),
}


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("name", OWN_CONFIGS)
def test_transformers_loads_what_we_save(name: str, shard_bytes: int, tmp_path: Path) -> None:
    ours = randomized(GPT(OWN_CONFIGS[name]))
    save(ours, None, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes == 10**9)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens = some_tokens(64, 16)
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-5)
    assert torch.equal(load(tmp_path)(tokens), ours(tokens))
    assert theirs.config.eos_token_id is None  # and not GPT-2's 50256, which this vocabulary lacks


BANDED = GPTConfig(
    vocabulary=70, context=16, layers=2, hidden=24, heads=3, attention_pattern=("dense", "banded"), band=5
)


@pytest.mark.parametrize(
    "config",
    [
        BANDED,
        GPTConfig(vocabulary=70, context=16, layers=1, hidden=24, heads=3, norm="post", activation="gelu"),
        GPTConfig(vocabulary=70, context=16, layers=1, hidden=24, heads=3, norm="post", feed_forward=20),
        replace(BANDED, tie_output=False),
    ],
    ids=["banded", "post-norm erf", "post-norm inner", "banded untied"],
)
def test_what_transformers_cannot_compute_has_a_type_of_its_own(config: GPTConfig, tmp_path: Path) -> None:
    ours = randomized(GPT(config))
    save(ours, None, tmp_path)
    tokens = some_tokens(64, 16)
    again = load(tmp_path)
    assert again.config == config
    assert torch.equal(again(tokens), ours(tokens))
    assert stored(tmp_path)["token_embedding.weight"].shape == (70, 24)
    with pytest.raises(ValueError, match="stemma-gpt"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_files_without_prefix_and_with_buffers(tmp_path: Path) -> None:
    """OpenAI's own `gpt2` repository: no prefix, causal masks among the weights, a pickled twin."""
    theirs = reference("odd vocabulary")
    theirs.save_pretrained(tmp_path / "new")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored(tmp_path / "new").items()}
    assert "wte.weight" in tensors
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(24, 24).tril().view(1, 1, 24, 24)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tokens = some_tokens(97, 24)
    expected = theirs(tokens).logits
    for form in ("safetensors", "bin", "old bin"):
        old = tmp_path / form
        old.mkdir()
        config = json.loads((tmp_path / "new" / "config.json").read_text())
        (old / "config.json").write_text(json.dumps({**config, "n_ctx": 24}))
        if form == "safetensors":
            save_file(tensors, old / "model.safetensors")
        else:
            torch.save(tensors, old / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
        torch.testing.assert_close(load(old)(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["odd vocabulary", "gpt1"])
def test_output_matrix_on_disk_decides_whether_the_model_is_tied(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape)
    theirs.save_pretrained(tmp_path)
    tensors = stored(tmp_path)
    embedding = next(tensor for name, tensor in tensors.items() if re.search(r"(wte|tokens_embed)\.weight", name))
    tokens = some_tokens(97, 24)

    save_file({**tensors, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert load(tmp_path).config.tie_output
    torch.testing.assert_close(load(tmp_path)(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)

    other = embedding.flip(0).contiguous()
    save_file({**tensors, "lm_head.weight": other}, tmp_path / "model.safetensors")
    untied = load(tmp_path)
    assert not untied.config.tie_output
    expected = theirs.transformer(tokens).last_hidden_state @ other.T
    torch.testing.assert_close(untied(tokens), expected, rtol=0, atol=1e-5)

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight' is missing"):
        load(tmp_path)


def test_vocabulary_padding_is_never_on_disk(tmp_path: Path) -> None:
    config = GPTConfig(vocabulary=70, context=8, layers=1, hidden=8, heads=2, tie_output=False, vocabulary_multiple=64)
    model = GPT(config)
    assert model.token_embedding.weight.shape == (128, 8)
    save(model, None, tmp_path)
    assert stored(tmp_path)["transformer.wte.weight"].shape == (70, 8)
    assert stored(tmp_path)["lm_head.weight"].shape == (70, 8)
    again = load(tmp_path)
    assert torch.equal(again.token_embedding.weight, model.token_embedding.weight[:70])
    assert again(some_tokens(70, 8)).shape == (3, 8, 70)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"activation_function": "mish"}, "activation_function 'mish'.*gelu_new"),
        ({"embd_pdrop": 0.3}, "embd_pdrop 0.3"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"n_layer": "two"}, "n_layer is 'two'"),
        ({"n_head": 5}, r"hidden \(32\) must be a multiple of heads \(5\)"),
        ({"n_layer": 3}, r"'transformer.h.2.attn.c_attn.bias' \(and 11 more\) is missing"),
        ({"n_layer": 1}, r"'transformer.h.1.attn.c_attn.bias' \(and 11 more\) is not part of the model"),
        ({"n_inner": 100}, r"c_fc.weight' is \[32, 128\], the config makes it \[32, 100\]"),
        ({"vocab_size": 96}, r"wte.weight' is \[97, 32\], the config makes it \[96, 32\]"),
        ({"n_positions": 25}, r"wpe.weight' is \[24, 32\], the config makes it \[25, 32\]"),
        ({"model_type": "gtp2"}, "no model family 'gtp2' .did you mean 'gpt2'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict, message: str, tmp_path: Path) -> None:
    reference("odd vocabulary").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_dtype_and_device(tmp_path: Path) -> None:
    reference("odd vocabulary").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.bfloat16}
    model = load(tmp_path, dtype=torch.float64, device="cpu")
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {(torch.float64, "cpu")}
    assert all(parameter.requires_grad for parameter in model.parameters())


class Words:
    """As much of a tokenizer as a checkpoint needs."""

    vocabulary, pad = 70, None

    def __init__(self, separator: int) -> None:
        self.separator = separator

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


def test_greedy_generation_of_transformers_is_our_argmax(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = randomized(GPT(OWN_CONFIGS["gpt2"]))
    prompt = some_tokens(70, 4, batch=1)
    tokens = prompt
    with torch.no_grad():
        ours.position_embedding.weight *= 4  # or the model says the same token over and over
        for _ in range(12):
            tokens = torch.cat([tokens, ours(tokens)[:, -1:].argmax(-1)], dim=1)
    continuation = tokens[0, 4:].tolist()
    assert len(set(continuation)) > 5
    # The logger of transformers does not hand its records on, so it is told where to put them.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    unused = next(token for token in range(70) if token not in continuation)
    for end, expected in (
        (unused, continuation),
        (continuation[3], continuation[: continuation.index(continuation[3]) + 1]),
    ):
        save(ours, Words(end), tmp_path)
        with caplog.at_level(logging.WARNING, logger="transformers"):
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
            generated = theirs.generate(prompt, do_sample=False, max_new_tokens=12)
        assert generated[0, 4:].tolist() == expected
    assert not caplog.records


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    model = GPT(replace(OWN_CONFIGS["gpt2"], vocabulary=69))
    with pytest.raises(InputError, match="tokenizer has 70 ids, more than the model's 69"):
        save(model, Words(0), tmp_path)
    assert not any(tmp_path.iterdir())
