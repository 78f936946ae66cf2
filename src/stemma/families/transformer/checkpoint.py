"""A Transformer's published names <-> ours: MarianMT of Hugging Face transformers, which has the paper's shape.

Marian lays the sines and the cosines of a position side by side in two halves, the paper (and ours) in turns. A model
does not tell the order of its hidden places apart, so weights are reordered on the way and compute the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.own_format import from_own, to_own
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.families.weights import (
    Stored,
    build_empty,
    fill,
    publish,
    refuse_set,
    require_counts,
)

OWN_TYPE = "stemma-transformer"  # of what MarianMT cannot be: norms inside the residual branches
MODEL_TYPES = ("marian", OWN_TYPE)
POSITIONS = 1024  # in Marian's configuration; sinusoids have no end

_ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
_DEFAULTS = {
    "vocab_size": 58101,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
}
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
# The embedding, of which older files hold copies, and tables that follow from a formula.
_EMBEDDING, _OUTPUT_BIAS = "model.shared.weight", "final_logits_bias"
_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
_TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def to_published(model: Transformer) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time.

    Marian's attention has biases: they are written as zeros where ours has none.
    """
    config = model.config
    if config.norm == "pre":
        return to_own(model, OWN_TYPE)
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    published = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocabulary,
        "decoder_vocab_size": config.vocabulary,
        "d_model": config.hidden,
        "encoder_layers": config.layers,
        "decoder_layers": config.layers if config.decoder_layers is None else config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feed_forward,
        "decoder_ffn_dim": config.feed_forward,
        "activation_function": activation,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.feed_forward_dropout,
        "scale_embedding": config.scale_embedding,
        "max_position_embeddings": POSITIONS,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "decoder_start_token_id": config.padding,
        "pad_token_id": config.padding,
        "forced_eos_token_id": None,
        "attention_bias": config.attention_bias,
    }
    return published, _with_zeros(model)


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Transformer:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    if published["model_type"] == OWN_TYPE:
        return from_own(published, tensors, TransformerConfig, Transformer, dtype=dtype, device=device)
    embedding = next((name for name in (_EMBEDDING, *_COPIES) if name in tensors), _EMBEDDING)
    ignored = {name for name in (*_COPIES, *_TABLES) if name in tensors and name != embedding}
    for name in ignored - set(_TABLES):
        if not torch.equal(tensors[name], tensors[embedding]):
            raise InputError(f"checkpoint: '{name}' and '{embedding}' differ, expected one matrix for all three")
    output_bias = _OUTPUT_BIAS in tensors and bool(tensors[_OUTPUT_BIAS].any())
    if not output_bias:
        ignored.add(_OUTPUT_BIAS)
    config = _config({_ALIASES.get(key, key): value for key, value in published.items()}, output_bias)
    if not config.attention_bias:
        biases = [name for name in _attention_biases(config) if name in tensors]
        if any(bool(tensors[name].any()) for name in biases):  # trained elsewhere since it was published
            config = replace(config, attention_bias=True)
        else:
            ignored.update(biases)
    model = build_empty(lambda: Transformer(config))
    fill(model, table(config, embedding), tensors, ignored=ignored, dtype=dtype, device=device)
    return model


def table(config: TransformerConfig, embedding: str = _EMBEDDING) -> list[Stored]:
    """Return what of MarianMT's is what of ours."""
    table = [Stored(embedding, ("token_embedding.weight",), rows=config.vocabulary, halves=1)]
    if config.output_bias:
        table.append(Stored(_OUTPUT_BIAS, ("final_bias",)))
    for stack, layers in _stacks(config).items():
        for layer in range(layers):
            theirs, ours = f"model.{stack}.layers.{layer}.", f"{stack}.blocks.{layer}."
            table += _block(theirs, ours, stack == "decoder", config.attention_bias)
    return table


def _block(theirs: str, ours: str, decoder: bool, attention_bias: bool) -> Iterator[Stored]:
    attentions = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if decoder else {})
    for their_name, our_name in attentions.items():
        for short, long in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
            writes = short == "out_proj"  # its rows are hidden places, the others' columns
            yield Stored(
                f"{theirs}{their_name}.{short}.weight", (f"{ours}{our_name}.{long}.weight",), halves=0 if writes else 1
            )
            if attention_bias:
                names = (f"{ours}{our_name}.{long}.bias",)
                yield Stored(f"{theirs}{their_name}.{short}.bias", names, halves=0 if writes else None)
        yield from _norm(f"{theirs}{their_name}_layer_norm.", f"{ours}{our_name}_residual.norm.")
    yield Stored(f"{theirs}fc1.weight", (f"{ours}feed_forward.up.weight",), halves=1)
    yield Stored(f"{theirs}fc1.bias", (f"{ours}feed_forward.up.bias",))
    yield Stored(f"{theirs}fc2.weight", (f"{ours}feed_forward.down.weight",), halves=0)
    yield Stored(f"{theirs}fc2.bias", (f"{ours}feed_forward.down.bias",), halves=0)
    yield from _norm(f"{theirs}final_layer_norm.", f"{ours}feed_forward_residual.norm.")


def _norm(theirs: str, ours: str) -> Iterator[Stored]:
    for name in ("weight", "bias"):
        yield Stored(theirs + name, (ours + name,), halves=0)


def _with_zeros(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    config, weight = model.config, model.token_embedding.weight
    yield from publish(model, table(config))
    if not config.output_bias:
        yield _OUTPUT_BIAS, weight.new_zeros(1, config.vocabulary)
    if not config.attention_bias:
        yield from ((name, weight.new_zeros(config.hidden)) for name in _attention_biases(config))


def _attention_biases(config: TransformerConfig) -> Iterator[str]:
    """Name the biases that Marian's attention has."""
    for stack, layers in _stacks(config).items():
        for layer in range(layers):
            for attention in ("self_attn", "encoder_attn") if stack == "decoder" else ("self_attn",):
                for short in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"model.{stack}.layers.{layer}.{attention}.{short}.bias"


def _stacks(config: TransformerConfig) -> dict[str, int]:
    return {
        "encoder": config.layers,
        "decoder": config.layers if config.decoder_layers is None else config.decoder_layers,
    }


def _config(published: Mapping[str, Any], output_bias: bool) -> TransformerConfig:
    values = {**_DEFAULTS, **published}
    require_counts(values, _DEFAULTS)
    _require_equal(values, "decoder_attention_heads", "encoder_attention_heads")
    _require_equal(values, "decoder_ffn_dim", "encoder_ffn_dim")
    _require_equal(values, "decoder_vocab_size", "vocab_size")
    _require_equal(values, "decoder_start_token_id", "pad_token_id")
    if not values.get("share_encoder_decoder_embeddings", True):
        raise InputError("config.json: share_encoder_decoder_embeddings is false, expected one vocabulary for both")
    refuse_set(values, ("quantization_config", "normalize_before", "normalize_embedding"))
    activation = values.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(f"config.json: activation_function {activation!r} is not supported, expected one of {known}")
    return TransformerConfig(
        vocabulary=values["vocab_size"],
        hidden=values["d_model"],
        heads=values["encoder_attention_heads"],
        layers=values["encoder_layers"],
        decoder_layers=None if values["decoder_layers"] == values["encoder_layers"] else values["decoder_layers"],
        feed_forward=values["encoder_ffn_dim"],
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        attention_bias=values.get("attention_bias", True),
        output_bias=output_bias,
        scale_embedding=values.get("scale_embedding", False),
        dropout=values.get("dropout", 0.1),
        attention_dropout=values.get("attention_dropout", 0.0),
        feed_forward_dropout=values.get("activation_dropout", 0.0),
        padding=values.get("pad_token_id", 58100),
    )


def _require_equal(values: Mapping[str, Any], key: str, other: str) -> None:
    if values.get(key) is not None and values.get(other) is not None and values[key] != values[other]:
        raise InputError(f"config.json: {key} is {values[key]!r} and {other} {values[other]!r}, expected one number")
