"""T5's published names <-> ours: Hugging Face `t5`, versions 1.0 and 1.1 (and Flan-T5)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.t5.model import T5, T5Config
from stemma.families.weights import Stored, build_empty, fill, publish, refuse_set, require_counts

MODEL_TYPES = ("t5",)

# transformers' words for gated and activation; what it calls "gated-gelu" is the tanh form, "gelu" is not.
_FEED_FORWARD = {
    "relu": (False, "relu"),
    "gated-gelu": (True, "gelu_tanh"),
    "gated-relu": (True, "relu"),
    "gelu_new": (False, "gelu_tanh"),
    "gelu": (False, "gelu"),
}
_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
# The embedding, which older files hold up to three times; and a table that was never used.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNUSED = re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")


def to_published(model: T5) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    config = model.config
    kinds = {ours: theirs for theirs, ours in _FEED_FORWARD.items()}
    if (config.gated, config.activation) not in kinds:
        raise InputError(f"model: a gated feed-forward with {config.activation} has no name in transformers")
    published = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocabulary,
        "d_model": config.hidden,
        "d_kv": config.head_dim,
        "d_ff": config.feed_forward,
        "num_layers": config.layers,
        "num_decoder_layers": config.layers if config.decoder_layers is None else config.decoder_layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": kinds[config.gated, config.activation],
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_output,
        "scale_decoder_outputs": config.scale_output,
        "decoder_start_token_id": config.start,
        "pad_token_id": config.start,
    }
    return published, publish(model, table(config))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> T5:
    """Build the model that config.json describes and fill it from `tensors`.

    The output projection is tied unless the files hold one that differs from the embedding: since transformers 5 the
    configuration does not say. Whether the decoder's states are scaled is `scale_decoder_outputs`, or, in older
    configurations, `tie_word_embeddings`.

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    embedding = next((name for name in _EMBEDDINGS if name in tensors), _EMBEDDINGS[0])
    ignored = {name for name in tensors if name in _EMBEDDINGS and name != embedding or _UNUSED.fullmatch(name)}
    tied = "lm_head.weight" not in tensors or _equal(tensors, "lm_head.weight", embedding)
    for name in ignored & set(_EMBEDDINGS):
        if not _equal(tensors, name, embedding):
            raise InputError(f"checkpoint: '{name}' and '{embedding}' differ, expected one embedding for both stacks")
    if tied:
        ignored.add("lm_head.weight")
    config = _config({_ALIASES.get(key, key): value for key, value in published.items()}, tied)
    model = build_empty(lambda: T5(config))
    fill(model, table(config, embedding), tensors, ignored=ignored, dtype=dtype, device=device)
    return model


def _equal(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    return other in tensors and torch.equal(tensors[one], tensors[other])


def _config(published: Mapping[str, Any], tied: bool) -> T5Config:
    values = {**_DEFAULTS, **published}
    require_counts(values, _DEFAULTS)
    kind = values.get("feed_forward_proj", "relu")
    if kind not in _FEED_FORWARD:
        known = ", ".join(_FEED_FORWARD)
        raise InputError(f"config.json: feed_forward_proj {kind!r} is not supported, expected one of {known}")
    refuse_set(values, ("quantization_config", "pruned_heads"))
    gated, activation = _FEED_FORWARD[kind]
    decoder_layers = values.get("num_decoder_layers")
    return T5Config(
        vocabulary=values["vocab_size"],
        hidden=values["d_model"],
        heads=values["num_heads"],
        head_dim=values["d_kv"],
        layers=values["num_layers"],
        decoder_layers=None if decoder_layers in (None, values["num_layers"]) else decoder_layers,
        feed_forward=values["d_ff"],
        gated=gated,
        activation=activation,  # type: ignore[arg-type]
        buckets=values["relative_attention_num_buckets"],
        max_distance=values["relative_attention_max_distance"],
        norm_epsilon=values.get("layer_norm_epsilon", 1e-6),
        dropout=values.get("dropout_rate", 0.1),
        tie_output=tied,
        scale_output=values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True)),
        start=values.get("decoder_start_token_id") or 0,
    )


def table(config: T5Config, embedding: str = _EMBEDDINGS[0]) -> list[Stored]:
    table = [Stored(embedding, ("token_embedding.weight",), rows=config.vocabulary)]
    decoder_layers = config.layers if config.decoder_layers is None else config.decoder_layers
    for stack, layers in (("encoder", config.layers), ("decoder", decoder_layers)):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(Stored(first, (f"{stack}.relative_bias.weight",)))
        for layer in range(layers):
            table += _block(config, f"{stack}.block.{layer}.layer.", f"{stack}.blocks.{layer}.", stack == "decoder")
        table.append(Stored(f"{stack}.final_layer_norm.weight", (f"{stack}.final_norm.weight",)))
    if not config.tie_output:
        table.append(Stored("lm_head.weight", ("output.weight",), rows=config.vocabulary))
    return table


def _block(config: T5Config, theirs: str, ours: str, decoder: bool) -> Iterator[Stored]:
    attentions = [("SelfAttention", "attention")] + [("EncDecAttention", "cross_attention")] * decoder
    for number, (their_name, our_name) in enumerate(attentions):
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            yield Stored(f"{theirs}{number}.{their_name}.{short}.weight", (f"{ours}{our_name}.{long}.weight",))
        yield Stored(f"{theirs}{number}.layer_norm.weight", (f"{ours}{our_name}_norm.weight",))
    maps = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if config.gated else {"wi": "up", "wo": "down"}
    number = len(attentions)
    for short, long in maps.items():
        yield Stored(f"{theirs}{number}.DenseReluDense.{short}.weight", (f"{ours}feed_forward.{long}.weight",))
    yield Stored(f"{theirs}{number}.layer_norm.weight", (f"{ours}feed_forward_norm.weight",))
