"""T5 checkpoints against Hugging Face transformers: same tensors, same states and logits, same gradients."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.t5.checkpoint import to_published
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.objective import SpanCorruption
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

# T5 1.0 and 1.1 (untied: a projection of its own is put into the file), each in two shapes.
SHAPES = {
    "1.0": dict(vocab_size=97, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3),
    "1.0, deeper decoder": dict(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, layer_norm_epsilon=1e-3,
    ),
    "1.1": dict(
        vocab_size=97, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
    "1.1, deeper encoder": dict(
        vocab_size=130, d_model=16, d_kv=12, d_ff=30, num_layers=3, num_decoder_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
}  # fmt: skip


def reference(shape: str, directory: Path, **extra: object) -> nn.Module:
    """A transformers model, read from `directory`, in which every parameter matters."""
    options = {**SHAPES[shape], **extra, "decoder_start_token_id": 0}
    model = randomized(transformers.T5ForConditionalGeneration(transformers.T5Config(**options)))
    model.save_pretrained(directory)
    if shape.startswith("1.1"):
        tensors = stored(directory)
        assert "lm_head.weight" not in tensors  # it is tied until a file says otherwise
        own = torch.randn(options["vocab_size"], options["d_model"], generator=torch.Generator().manual_seed(5))
        save_file({**tensors, "lm_head.weight": own * 0.2}, directory / "model.safetensors", {"format": "pt"})
    return transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if "norm" in name:
                parameter += 1.0
    return model.eval()


def some_pair(vocabulary: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(2, vocabulary, (3, size), generator=generator) for size in (150, 70))
    return source, target


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the scale of what is compared."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.abs().max()), 1e-3))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_logits_and_gradients_are_those_of_transformers(shape: str, padded: bool, tmp_path: Path) -> None:
    theirs = reference(shape, tmp_path)
    ours = load(tmp_path)
    assert not ours.training
    source, target = some_pair(theirs.config.vocab_size)
    padding, options = None, {}
    if padded:
        padding = torch.arange(150) < torch.tensor([[150], [20], [97]])
        target[1, 50:] = -100
        options["attention_mask"] = padding.long()
    expected = theirs(input_ids=source, labels=target, **options)

    encoded = ours.encode(source, None if padding is None else Mask(key_padding=padding))
    real = torch.ones_like(source, dtype=torch.bool) if padding is None else padding
    torch.testing.assert_close(encoded[real], expected.encoder_last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(source, target, source_padding=padding), expected.logits, rtol=0, atol=1e-5)

    expected.loss.backward()
    hidden = ours.hidden(source, target, source_padding=padding)
    loss = linear_cross_entropy(hidden.flatten(0, 1), ours.output_weight, target.flatten())
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients = deepcopy(ours)
    for parameter, origin in zip(gradients.parameters(), ours.parameters(), strict=True):
        assert origin.grad is not None
        parameter.data = origin.grad
    published = dict(to_published(gradients)[1])
    expected_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert published.keys() == expected_gradients.keys()
    assert ("lm_head.weight" in published) == shape.startswith("1.1")
    for name, gradient in expected_gradients.items():
        assert_close(published[name], gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_load_then_save_gives_the_same_files(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape, tmp_path / "theirs")
    save(load(tmp_path / "theirs"), None, tmp_path / "ours")
    expected, found = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    before = theirs.config.to_dict()
    after = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    changed = {key for key in before if after.get(key) != before[key]}
    assert changed <= {"_name_or_path", "eos_token_id"}  # saved without a tokenizer


_TINY = T5Config(vocabulary=70, hidden=24, heads=3, head_dim=10, layers=2, feed_forward=40)
OWN_CONFIGS = {
    "1.0": _TINY,
    "1.1": replace(_TINY, gated=True, activation="gelu_tanh", tie_output=False, scale_output=False),
    "1.1 tied": replace(_TINY, gated=True, activation="gelu_tanh", scale_output=False),
    "untied but scaled": replace(_TINY, tie_output=False, decoder_layers=1),
    "buckets": replace(_TINY, buckets=16, max_distance=64, norm_epsilon=1e-4, dropout=0.2, activation="gelu"),
}


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("name", OWN_CONFIGS)
def test_transformers_loads_what_we_save(name: str, shard_bytes: int, tmp_path: Path) -> None:
    ours = randomized(T5(OWN_CONFIGS[name]))
    save(ours, None, tmp_path, shard_bytes=shard_bytes)
    theirs, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    source, target = some_pair(70)
    expected = theirs.eval()(input_ids=source, labels=target).logits
    torch.testing.assert_close(ours(source, target), expected, rtol=0, atol=1e-5)
    again = load(tmp_path)
    assert again.config == ours.config
    assert torch.equal(again(source, target), ours(source, target))


def test_a_directory_with_a_tokenizer_generates_in_transformers(tmp_path: Path) -> None:
    text = "the family tree of language models, every branch of it running. " * 20
    tokenizer = SpanCorruption.prepare_tokenizer(train_tokenizer([text], "unigram", 400, byte_fallback=True), {})
    model = randomized(T5(replace(_TINY, vocabulary=tokenizer.vocabulary)))
    save(model, tokenizer, tmp_path)
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 1, 0)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer("every <extra_id_0> of it")["input_ids"][-1] == 1
    assert their_tokenizer.convert_tokens_to_ids("<extra_id_0>") == tokenizer.vocabulary - 1
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source, _ = some_pair(300)
    expected = theirs.generate(source[:1], do_sample=False, max_new_tokens=8)
    tokens = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        encoded = model.encode(source[:1])
        while tokens.shape[1] < expected.shape[1]:
            logits = model.logits(model.decode(tokens, encoded)[:, -1])
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("shape", ["1.0", "1.1"])
def test_old_files_hold_the_embedding_three_times_and_a_table_that_is_not_used(shape: str, tmp_path: Path) -> None:
    theirs = reference(shape, tmp_path)
    source, target = some_pair(97)
    expected = theirs(input_ids=source, labels=target).logits
    tensors = stored(tmp_path)
    old = dict(tensors)
    old["encoder.embed_tokens.weight"] = old["decoder.embed_tokens.weight"] = tensors["shared.weight"]
    old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(32, 3)
    if shape == "1.0":
        old["lm_head.weight"] = tensors["shared.weight"]
    torch.save(old, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    ours = load(tmp_path)
    assert ours.config.tie_output == (shape == "1.0")
    torch.testing.assert_close(ours(source, target), expected, rtol=0, atol=1e-5)

    del old["shared.weight"]  # some conversions keep another of the three
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert torch.equal(load(tmp_path)(source, target), ours(source, target))

    old["decoder.embed_tokens.weight"] = torch.randn(97, 24)
    torch.save(old, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="decoder.embed_tokens.weight' and 'encoder.embed_tokens.weight' differ"):
        load(tmp_path)


def test_the_configuration_of_older_versions_of_transformers(tmp_path: Path) -> None:
    """There `tie_word_embeddings: false` says that the decoder's states are not scaled; num_decoder_layers is new."""
    for shape in ("1.0", "1.1"):
        directory = tmp_path / shape
        theirs = reference(shape, directory)
        config = json.loads((directory / "config.json").read_text())
        for key in ("scale_decoder_outputs", "num_decoder_layers", "relative_attention_max_distance"):
            del config[key]
        config |= {"tie_word_embeddings": shape == "1.0", "n_positions": 512, "output_past": True}
        (directory / "config.json").write_text(json.dumps(config))
        source, target = some_pair(97)
        ours = load(directory)
        assert ours.config.scale_output == ours.config.tie_output == (shape == "1.0")
        expected = theirs(input_ids=source, labels=target).logits
        torch.testing.assert_close(ours(source, target), expected, rtol=0, atol=1e-5)


def test_vocabulary_padding_is_never_on_disk(tmp_path: Path) -> None:
    model = T5(replace(_TINY, tie_output=False))
    assert model.token_embedding.weight.shape == model.output.weight.shape == (128, 24)
    save(model, None, tmp_path)
    assert stored(tmp_path)["shared.weight"].shape == stored(tmp_path)["lm_head.weight"].shape == (70, 24)
    again = load(tmp_path)
    assert torch.equal(again.token_embedding.weight[70:], torch.zeros(58, 24))
    assert again(*some_pair(70)).shape == (3, 70, 70)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'.*gated-gelu"),
        ({"d_model": 0}, "d_model is 0"),
        ({"num_layers": "two"}, "num_layers is 'two'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"d_ff": 41}, r"wi\.weight' is \[40, 24\], the config makes it \[41, 24\]"),
        ({"num_decoder_layers": 3}, r"block\.2\..* is missing"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    reference("1.0", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_combination_without_a_published_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gated feed-forward with gelu"):
        save(T5(replace(_TINY, gated=True, activation="gelu")), None, tmp_path)
