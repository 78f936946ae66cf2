"""GPT's published names <-> ours: Hugging Face `gpt2` and `openai-gpt`, and a type of our own for the rest.

Own type, `stemma-gpt`: GPT-3's banded layers have no equivalent in transformers. GPT-Neo alternates global and local
layers too, but its queries have no bias, and a query's bias does not cancel in the softmax, so GPT-3's weights cannot
be written as GPT-Neo's. Such a model is published under its own type and names, which transformers refuses by name
instead of computing something else. Where the band is as wide as the context, the model is a GPT-2 and published so.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.own_format import from_own, to_own
from stemma.families.weights import Stored, build_empty, fill, publish, refuse_set, require_counts

OWN_TYPE = "stemma-gpt"
MODEL_TYPES = ("gpt2", "openai-gpt", OWN_TYPE)

# transformers' words for our activations, the one to write first. In openai-gpt "gelu" is the tanh form.
_ACTIVATIONS = {
    "gpt2": {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu_accurate": "gelu_tanh",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "relu": "relu",
    },
    "openai-gpt": {"gelu": "gelu_tanh", "relu": "relu"},
}
_ACTIVATION_KEY = {"gpt2": "activation_function", "openai-gpt": "afn"}
_ARCHITECTURE = {"gpt2": "GPT2LMHeadModel", "openai-gpt": "OpenAIGPTLMHeadModel"}
_DEFAULTS = {
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new"},
    "openai-gpt": {"vocab_size": 40478, "n_positions": 512, "afn": "gelu"},
}
_ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# Causal masks that older files carry in every layer; weights that training never changed.
_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")


def to_published(model: GPT) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    config = model.config
    model_type = published_type(config)
    if model_type == OWN_TYPE:
        return to_own(model, OWN_TYPE)
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS[model_type].items())}
    published = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURE[model_type]],
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_layer": config.layers,
        "n_embd": config.hidden,
        "n_head": config.heads,
        _ACTIVATION_KEY[model_type]: activations[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": config.tie_output,
    }
    if model_type == "gpt2":
        published["n_inner"] = config.feed_forward
    return published, publish(model, table(config, "transformer."))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GPT:
    """Build the model that config.json describes and fill it from `tensors`.

    `scale_attn_by_inverse_layer_idx` and `scale_attn_weights: false` are honoured by folding the factor into the
    queries' weights. An output matrix on disk that differs from the embedding makes the model untied.

    Raises:
        InputError: a configuration key that we would compute differently, or tensors that do not fit.
    """
    if published["model_type"] == OWN_TYPE:
        return from_own(published, tensors, GPTConfig, GPT, dtype=dtype, device=device)
    published = {_ALIASES.get(key, key): value for key, value in published.items()}
    ignored = {name for name in tensors if _BUFFER.fullmatch(name)}
    tied = _is_tied(published, tensors)
    config = _config(published, tied)
    if tied:
        ignored.add("lm_head.weight")
    model = build_empty(lambda: GPT(config))
    fill(model, table(config, _prefix(tensors)), tensors, ignored=ignored, dtype=dtype, device=device)
    _fold_scales(model, published)
    return model


def published_type(config: GPTConfig) -> str:
    """Return the "model_type" under which such a model is published."""
    windows = [config.window(layer) for layer in range(config.layers)]
    dense = all(window is None or window >= config.context for window in windows)
    if dense and config.norm == "pre":
        return "gpt2"
    if dense and config.feed_forward in (None, 4 * config.hidden) and config.activation != "gelu":
        return "openai-gpt"
    return OWN_TYPE


def _config(published: Mapping[str, Any], tied: bool) -> GPTConfig:
    model_type = published["model_type"]
    published = {"n_layer": 12, "n_embd": 768, "n_head": 12, **_DEFAULTS[model_type], **published}
    _refuse_unsupported(published)
    key = _ACTIVATION_KEY[model_type]
    activations = _ACTIVATIONS[model_type]
    if published[key] not in activations:
        raise InputError(
            f"config.json: {key} {published[key]!r} is not supported, expected one of {', '.join(activations)}"
        )
    dropout, embedding_dropout = published.get("resid_pdrop", 0.1), published.get("embd_pdrop", 0.1)
    if dropout != embedding_dropout:
        raise InputError(f"config.json: resid_pdrop {dropout} and embd_pdrop {embedding_dropout} must be equal")
    return GPTConfig(
        vocabulary=published["vocab_size"],
        context=published["n_positions"],
        layers=published["n_layer"],
        hidden=published["n_embd"],
        heads=published["n_head"],
        feed_forward=published.get("n_inner") if model_type == "gpt2" else None,
        norm="pre" if model_type == "gpt2" else "post",
        activation=activations[published[key]],  # type: ignore[arg-type]
        norm_epsilon=published.get("layer_norm_epsilon", 1e-5),
        dropout=dropout,
        attention_dropout=published.get("attn_pdrop", 0.1),
        tie_output=tied,
        position_std=0.01 if model_type == "gpt2" else 0.02,
    )


def _refuse_unsupported(published: Mapping[str, Any]) -> None:
    # reorder_and_upcast_attn needs nothing from us: it asks for scores and softmax in float32, as every kernel of
    # scaled_dot_product_attention computes them.
    require_counts(published, ("vocab_size", "n_positions", "n_layer", "n_embd", "n_head"))
    refuse_set(published, ("add_cross_attention", "quantization_config", "pruned_heads"))


def _is_tied(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    if not published.get("tie_word_embeddings", True):
        return False
    embedding = _prefix(tensors) + _embedding_names(published["model_type"])[0]
    if "lm_head.weight" not in tensors or embedding not in tensors:
        return True
    return torch.equal(tensors["lm_head.weight"], tensors[embedding])


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    """Files saved from the bare stack (OpenAI's own `gpt2` repository) lack the prefix."""
    return "transformer." if any(name.startswith("transformer.") for name in tensors) else ""


def _embedding_names(model_type: str) -> tuple[str, str]:
    if model_type == "gpt2":
        return "wte.weight", "wpe.weight"
    return "tokens_embed.weight", "positions_embed.weight"


def table(config: GPTConfig, prefix: str = "") -> list[Stored]:
    """List the tensors of a `gpt2` (pre-norm) or `openai-gpt` (post-norm) checkpoint."""
    token, position = _embedding_names("gpt2" if config.norm == "pre" else "openai-gpt")
    table = [
        Stored(prefix + token, ("token_embedding.weight",), rows=config.vocabulary),
        Stored(prefix + position, ("position_embedding.weight",)),
    ]
    for layer in range(config.layers):
        theirs, ours = f"{prefix}h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            maps = kind == "weight"
            query_key_value = tuple(f"{ours}attention.{part}.{kind}" for part in ("query", "key", "value"))
            table += [
                Stored(f"{theirs}ln_1.{kind}", (f"{ours}attention_norm.{kind}",)),
                Stored(f"{theirs}attn.c_attn.{kind}", query_key_value, transposed=maps),
                Stored(f"{theirs}attn.c_proj.{kind}", (f"{ours}attention.output.{kind}",), transposed=maps),
                Stored(f"{theirs}ln_2.{kind}", (f"{ours}feed_forward_norm.{kind}",)),
                Stored(f"{theirs}mlp.c_fc.{kind}", (f"{ours}feed_forward.up.{kind}",), transposed=maps),
                Stored(f"{theirs}mlp.c_proj.{kind}", (f"{ours}feed_forward.down.{kind}",), transposed=maps),
            ]
    if config.norm == "pre":
        table += [Stored(f"{prefix}ln_f.{kind}", (f"final_norm.{kind}",)) for kind in ("weight", "bias")]
    if not config.tie_output:
        table.append(Stored("lm_head.weight", ("output.weight",), rows=config.vocabulary))
    return table


@torch.no_grad()
def _fold_scales(model: GPT, published: Mapping[str, Any]) -> None:
    """Fold what transformers multiplies the scores by, beyond 1 / sqrt(head_dim), into the queries."""
    if published["model_type"] != "gpt2":
        return
    scale = 1.0 if published.get("scale_attn_weights", True) else (model.config.hidden / model.config.heads) ** 0.5
    by_layer = published.get("scale_attn_by_inverse_layer_idx", False)
    for layer in range(model.config.layers):
        factor = scale / (layer + 1 if by_layer else 1)
        if factor != 1.0:
            for kind in ("weight", "bias"):
                model.get_parameter(f"blocks.{layer}.attention.query.{kind}").mul_(factor)
