"""Mistral's published names <-> ours: Hugging Face `mistral`, `mixtral`, `ministral` (layers with and without a window)
and `llama` (read only: what it holds is a Mistral without windows), and a type of our own for the rest.

Own type, `stemma-mistral`: windows of several sizes, or experts behind layers that differ, which no class of
transformers computes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.weights import Stored, build_empty, fill, own_config, publish, refuse_set, require_counts

OWN_TYPE = "stemma-mistral"
MODEL_TYPES = ("mistral", "mixtral", "ministral", "llama", OWN_TYPE)

_ARCHITECTURE = {
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "ministral": "MinistralForCausalLM",
}
# What transformers assumes where config.json does not say.
_GENERAL = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": _GENERAL,
    "ministral": _GENERAL,
    "mixtral": {
        **_GENERAL,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "llama": {
        **_GENERAL,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "sliding_window": None,
    },
}
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim", "sliding_window", "num_local_experts", "num_experts_per_tok")
# Rotary frequencies that older files carry in every layer; they follow from the configuration.
_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def to_published(model: Mistral) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    config = model.config
    model_type = published_type(config)
    if model_type == OWN_TYPE:
        return {"model_type": OWN_TYPE, "architectures": ["Mistral"], **asdict(config)}, publish(model, table(config))
    windows = _windows(config)
    published = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURE[model_type]],
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "initializer_range": config.initial_std,
        "rms_norm_eps": config.norm_epsilon,
        "sliding_window": next((window for window in windows if window is not None), None),
        "rope_theta": config.rope_theta,  # for readers older than transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_output,
        "attention_dropout": 0.0,
    }
    if model_type == "ministral":
        published["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
    if model_type == "mixtral":
        published |= {"num_local_experts": config.experts, "num_experts_per_tok": config.experts_per_token}
    return published, publish(model, table(config))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Mistral:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    ignored = {name for name in tensors if _BUFFER.fullmatch(name)}
    config = own_config(published, MistralConfig) if published["model_type"] == OWN_TYPE else _config(published)
    if config.tie_output and "lm_head.weight" in tensors:
        if torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            ignored.add("lm_head.weight")
        else:
            raise InputError(
                "config.json: tie_word_embeddings is true, but 'lm_head.weight' differs from the embedding"
            )
    model = build_empty(lambda: Mistral(config))
    fill(model, table(config), tensors, ignored=ignored, dtype=dtype, device=device)
    return model


def published_type(config: MistralConfig) -> str:
    """Return the "model_type" under which such a model is published."""
    windows = set(_windows(config))
    if len(windows) == 1:
        return "mixtral" if config.experts else "mistral"
    return "ministral" if len(windows - {None}) == 1 and not config.experts else OWN_TYPE


def table(config: MistralConfig) -> list[Stored]:
    """List the tensors of a checkpoint by Hugging Face's names."""
    rows = [Stored("model.embed_tokens.weight", ("token_embedding.weight",))]
    for layer in range(config.layers):
        theirs, ours = f"model.layers.{layer}.", f"blocks.{layer}."
        names = {
            "input_layernorm": "attention_norm",
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.o_proj": "attention.output",
            "post_attention_layernorm": "feed_forward_norm",
        }
        if config.experts:
            names["block_sparse_moe.gate"] = "feed_forward.router"
            for expert in range(config.experts):
                for their, our in {"w1": "gate", "w2": "down", "w3": "up"}.items():
                    names[f"block_sparse_moe.experts.{expert}.{their}"] = f"feed_forward.experts.{expert}.{our}"
        else:
            names |= {f"mlp.{name}_proj": f"feed_forward.{name}" for name in ("gate", "up", "down")}
        rows += [Stored(f"{theirs}{their}.weight", (f"{ours}{our}.weight",)) for their, our in names.items()]
    rows.append(Stored("model.norm.weight", ("final_norm.weight",)))
    if not config.tie_output:
        rows.append(Stored("lm_head.weight", ("output.weight",)))
    return rows


def _windows(config: MistralConfig) -> list[int | None]:
    return [config.window(layer) for layer in range(config.layers)]


def _config(published: Mapping[str, Any]) -> MistralConfig:
    model_type = published["model_type"]
    values = {**_DEFAULTS[model_type], **published}
    _refuse_unsupported(values)
    return MistralConfig(
        vocabulary=values["vocab_size"],
        context=values["max_position_embeddings"],
        layers=values["num_hidden_layers"],
        hidden=values["hidden_size"],
        heads=values["num_attention_heads"],
        key_value_heads=values["num_key_value_heads"] or values["num_attention_heads"],
        head_dim=values.get("head_dim"),
        feed_forward=values["intermediate_size"],
        windows=_published_windows(values),
        rope_theta=_rope_theta(values),
        norm_epsilon=values["rms_norm_eps"],
        experts=values["num_local_experts"] if model_type == "mixtral" else 0,
        experts_per_token=values["num_experts_per_tok"] if model_type == "mixtral" else 2,
        tie_output=values.get("tie_word_embeddings", False),
        initial_std=values.get("initializer_range", 0.02),
    )


def _published_windows(values: Mapping[str, Any]) -> tuple[int | None, ...]:
    window = values["sliding_window"]
    kinds = values.get("layer_types")
    if kinds is None:
        return (window,)
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != values["num_hidden_layers"]:
        problem = f"names {unknown[0]!r}" if unknown else f"has {len(kinds)} entries"
        raise InputError(
            f"config.json: layer_types {problem}, expected full_attention or sliding_attention for each of "
            f"{values['num_hidden_layers']} layers"
        )
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if len(set(windows)) > 1 and values["model_type"] != "ministral":
        raise InputError(f"config.json: layer_types differ, which in a {values['model_type']} transformers ignores")
    return windows if len(set(windows)) > 1 else windows[:1]


def _rope_theta(values: Mapping[str, Any]) -> float:
    """Return the base of the rotary wave lengths, from transformers 5's key or the older two."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise InputError(f"config.json: rotary positions of type {kind!r} are not supported, expected default")
    return float(scaling.get("rope_theta", values["rope_theta"]))


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    require_counts(values, (*_COUNTS, *(key for key in _OPTIONAL_COUNTS if values.get(key) is not None)))
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InputError(f"config.json: hidden_act {values['hidden_act']!r} is not supported, expected silu")
    refuse_set(values, ("attention_bias", "mlp_bias", "quantization_config", "pruned_heads"))
