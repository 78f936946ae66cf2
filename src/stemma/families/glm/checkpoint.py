"""GLM's published names <-> ours: the Hugging Face layout of THUDM/glm-large, glm-2b, glm-10b and their relatives.

transformers computes these models with the code that those repositories carry; its own "glm" is the later GLM-4,
another architecture with other configuration keys, which is refused here by name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.weights import Stored, build_empty, fill, publish, refuse_set, require_counts

MODEL_TYPES = ("glm",)

_SIZES = {
    "vocab_size": "vocabulary",
    "max_sequence_length": "context",
    "num_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
}
# The defaults of the published configuration class, GLM-Large's.
_DEFAULTS = {
    "vocab_size": 30592,
    "max_sequence_length": 512,
    "num_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "embedding_dropout_prob": 0.1,
    "attention_dropout_prob": 0.1,
    "output_dropout_prob": 0.1,
    "block_position_encoding": True,
}
_PREFIX = "glm."  # of files saved from a model with a head round the bare one


def to_published(model: GLM) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    config = model.config
    published = {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "embedding_dropout_prob": config.dropout,
        "attention_dropout_prob": config.attention_dropout,
        "output_dropout_prob": config.dropout,
        "block_position_encoding": config.block_positions,
        "relative_encoding": False,
    }
    return published, publish(model, table(config))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GLM:
    """Build the model that config.json describes and fill it from `tensors`, whose names may begin with "glm.".

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    config = _config(published)
    model = build_empty(lambda: GLM(config))
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    fill(model, table(config, prefix), tensors, dtype=dtype, device=device)
    return model


def table(config: GLMConfig, prefix: str = "") -> list[Stored]:
    """List the tensors of a checkpoint, in either published layout."""
    stack = prefix + "transformer."
    table = [
        Stored(prefix + "word_embeddings.weight", ("token_embedding.weight",), rows=config.vocabulary),
        Stored(stack + "position_embeddings.weight", ("position_embedding.weight",)),
    ]
    if config.block_positions:
        table.append(Stored(stack + "block_position_embeddings.weight", ("block_position_embedding.weight",)))
    for layer in range(config.layers):
        theirs, ours = f"{stack}layers.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            query_key_value = tuple(f"{ours}attention.{part}.{kind}" for part in ("query", "key", "value"))
            table += [
                Stored(f"{theirs}input_layernorm.{kind}", (f"{ours}attention_norm.{kind}",)),
                Stored(f"{theirs}attention.query_key_value.{kind}", query_key_value),
                Stored(f"{theirs}attention.dense.{kind}", (f"{ours}attention.output.{kind}",)),
                Stored(f"{theirs}post_attention_layernorm.{kind}", (f"{ours}feed_forward_norm.{kind}",)),
                Stored(f"{theirs}mlp.dense_h_to_4h.{kind}", (f"{ours}feed_forward.up.{kind}",)),
                Stored(f"{theirs}mlp.dense_4h_to_h.{kind}", (f"{ours}feed_forward.down.{kind}",)),
            ]
    return table + [Stored(f"{stack}final_layernorm.{kind}", (f"final_norm.{kind}",)) for kind in ("weight", "bias")]


def _config(published: Mapping[str, Any]) -> GLMConfig:
    if "num_layers" not in published and "num_hidden_layers" in published:
        raise InputError(
            "config.json: this is GLM-4 or later (num_hidden_layers), another architecture under the same model_type "
            "'glm'; expected GLM as in THUDM/glm-large (num_layers)"
        )
    published = {**_DEFAULTS, **published}
    require_counts(published, _SIZES)
    # `attention_scale` needs nothing from us: scores are divided and multiplied by it, for the sake of float16.
    refuse_set(published, ("relative_encoding", "spell_length", "quantization_config"))
    dropout, embedding_dropout = published["output_dropout_prob"], published["embedding_dropout_prob"]
    if dropout != embedding_dropout:
        raise InputError(
            f"config.json: output_dropout_prob {dropout} and embedding_dropout_prob {embedding_dropout} must be equal"
        )
    return GLMConfig(
        **{ours: published[theirs] for theirs, ours in _SIZES.items()},
        dropout=dropout,
        attention_dropout=published["attention_dropout_prob"],
        block_positions=published["block_position_encoding"],
    )
