"""Transformer checkpoints against transformers' MarianMT: same logits, same gradients, the same files back."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families import load, save
from stemma.families.pairs import target_loss
from stemma.families.transformer.checkpoint import OWN_TYPE, to_published
from stemma.families.transformer.model import Transformer, TransformerConfig

SHAPES = {
    "paper": dict(activation_function="relu", scale_embedding=True),
    "published": dict(activation_function="swish", scale_embedding=True, decoder_layers=1),
    "unscaled": dict(activation_function="gelu", scale_embedding=False, encoder_layers=1),
}


def reference(shape: str, directory: Path, *, output_bias: bool = False) -> nn.Module:
    """A MarianMT, read from `directory`, in which every parameter matters."""
    sizes = dict(vocab_size=97, d_model=24, encoder_layers=2, decoder_layers=2, pad_token_id=96, eos_token_id=0)
    sizes |= {f"{stack}_attention_heads": 3 for stack in ("encoder", "decoder")}
    sizes |= {f"{stack}_ffn_dim": 40 for stack in ("encoder", "decoder")}
    config = transformers.MarianConfig(**{**sizes, **SHAPES[shape]}, decoder_start_token_id=96, dropout=0.0)
    model = randomized(transformers.MarianMTModel(config))
    if output_bias:
        model.final_logits_bias.copy_(torch.randn(1, 97, generator=torch.Generator().manual_seed(3)))
    model.save_pretrained(directory)
    return transformers.MarianMTModel.from_pretrained(directory).eval()


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter += 1.0
    return model.eval()


def some_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(1, 90, (3, size), generator=generator) for size in (70, 30))
    return source, target


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the scale of what is compared."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.abs().max()), 1e-3))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape: str, padded: bool, tmp_path: Path) -> None:
    theirs, ours = reference(shape, tmp_path, output_bias=padded), load(tmp_path)
    assert not ours.training and (ours.output_bias is not None) == padded
    source, target = some_pair()
    padding, options = None, {}
    if padded:
        padding = torch.arange(70) < torch.tensor([[70], [20], [47]])
        target[1, 20:] = -100
        options["attention_mask"] = padding.long()
    expected = theirs(input_ids=source, labels=target, **options)
    found = ours(source, target, source_padding=padding)
    real = target >= 0  # what is read behind a target does not matter
    torch.testing.assert_close(found[real], expected.logits[real], rtol=0, atol=1e-5)

    expected.loss.backward()
    batch = {"source": source, "target": target} | ({} if padding is None else {"source_padding": padding})
    loss, sums = target_loss(ours, batch)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sums["nll"] / sums["targets"], expected.loss.detach(), rtol=1e-5, atol=0)
    loss.backward()
    gradients = deepcopy(ours)
    for parameter, origin in zip(gradients.parameters(), ours.parameters(), strict=True):
        assert origin.grad is not None
        parameter.data = origin.grad
    published = dict(to_published(gradients)[1])
    expected_gradients = {
        name: parameter.grad for name, parameter in theirs.named_parameters() if "embed_positions" not in name
    }
    assert published.keys() == {*expected_gradients, "final_logits_bias"}
    for name, gradient in expected_gradients.items():
        assert_close(published[name], gradient)


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_load_then_save_gives_the_same_files(shape: str, output_bias: bool, tmp_path: Path) -> None:
    reference(shape, tmp_path / "theirs", output_bias=output_bias)
    save(load(tmp_path / "theirs"), None, tmp_path / "ours")
    expected, found = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


_TINY = TransformerConfig(vocabulary=70, hidden=24, heads=3, layers=2, feed_forward=40, padding=69)
OWN_CONFIGS = {
    "paper": _TINY,
    "biases": replace(_TINY, attention_bias=True, output_bias=True, activation="gelu_tanh", decoder_layers=1),
    "plain": replace(_TINY, scale_embedding=False, activation="silu", dropout=0.3, attention_dropout=0.2),
}


@pytest.mark.parametrize("name", OWN_CONFIGS)
def test_transformers_loads_what_we_save(name: str, tmp_path: Path) -> None:
    ours = randomized(Transformer(OWN_CONFIGS[name]))
    save(ours, None, tmp_path)
    theirs, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, transformers.MarianMTModel)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    source, target = some_pair()
    source, target = source % 69, target % 69
    expected = theirs.eval()(input_ids=source, labels=target).logits
    torch.testing.assert_close(ours(source, target), expected, rtol=0, atol=1e-5)
    again = load(tmp_path)
    assert again.config == ours.config
    assert torch.equal(again(source, target), ours(source, target))


def test_biases_that_were_trained_elsewhere_are_kept(tmp_path: Path) -> None:
    save(Transformer(_TINY), None, tmp_path)
    theirs = randomized(transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    theirs.save_pretrained(tmp_path)
    source, target = (tokens % 69 for tokens in some_pair())
    expected = theirs(input_ids=source, labels=target).logits
    torch.testing.assert_close(load(tmp_path)(source, target), expected, rtol=0, atol=1e-5)


def test_norms_inside_the_branches_have_a_type_of_their_own(tmp_path: Path) -> None:
    ours = randomized(Transformer(replace(_TINY, norm="pre", output_bias=True)))
    save(ours, None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == OWN_TYPE
    source, target = some_pair()
    source, target = source % 69, target % 69
    again = load(tmp_path)
    assert again.config == ours.config
    assert torch.equal(again(source, target), ours(source, target))


def test_old_files_hold_the_matrix_four_times_and_tables_of_positions(tmp_path: Path) -> None:
    theirs = reference("paper", tmp_path)
    source, target = some_pair()
    expected = theirs(input_ids=source, labels=target).logits
    copies = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"]
    old = {**stored(tmp_path), "model.encoder.embed_positions.weight": torch.randn(512, 24)}
    for name in copies:
        old[name] = old["model.shared.weight"].clone()
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(source, target), expected, rtol=0, atol=1e-5)
    del old["model.shared.weight"]
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(source, target), expected, rtol=0, atol=1e-5)
    old["lm_head.weight"] += 1
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="'lm_head.weight' and 'model.encoder.embed_tokens.weight' differ"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "tanh"}, "activation_function 'tanh'.*relu"),
        ({"d_model": 0}, "d_model is 0"),
        ({"decoder_ffn_dim": 48}, "decoder_ffn_dim is 48 and encoder_ffn_dim 40"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
        ({"decoder_vocab_size": 90}, "decoder_vocab_size is 90"),
        ({"decoder_start_token_id": 1}, "decoder_start_token_id is 1"),
        ({"share_encoder_decoder_embeddings": False}, "one vocabulary"),
        ({"normalize_before": True}, "normalize_before"),
        ({"encoder_layers": 3}, r"encoder\.layers\.2\..* is missing"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    reference("paper", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        load(tmp_path)
