"""BERT's published names <-> ours: Hugging Face `bert`, with and without heads, in the older spellings too."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig, MaskedHead, NextSentence, Pooler, initialize
from stemma.families.weights import Stored, build_empty, fill, publish, refuse_set, require_counts

logger = logging.getLogger(__name__)

MODEL_TYPES = ("bert",)

# transformers' words for our activations, the one to write first.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_SIZES = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
    "type_vocab_size": "segments",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
}
_REST = {
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initial_std",
}
_DEFAULTS = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
}
_BUFFER = re.compile(r"(bert\.)?embeddings\.position_ids")
_DECODER_WEIGHT, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
_TASK_HEAD = re.compile(r"(classifier|qa_outputs)\.(weight|bias)")

# Parts that a directory may lack: our module, how the names of its tensors begin, and how it is built anew.
_PARTS: dict[str, tuple[str, Callable[[BERTConfig], nn.Module], str]] = {
    "pooler": ("bert.pooler.", Pooler, "the pooler"),
    "masked_head": ("cls.predictions.", MaskedHead, "the head for masked tokens"),
    "next_sentence": ("cls.seq_relationship.", NextSentence, "the head for sentence pairs"),
}


def to_published(model: BERT) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    config = model.config
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    sizes = {theirs: getattr(config, ours) for theirs, ours in {**_SIZES, **_REST}.items()}
    published = {
        "model_type": "bert",
        "architectures": ["BertForPreTraining"],
        **sizes,
        "intermediate_size": config.feed_forward or 4 * config.hidden,
        "hidden_act": activations[config.activation],
        "pad_token_id": None,
        "tie_word_embeddings": config.tie_output,
    }
    # The bias has two names where the output is not tied; a file holds no tensor twice.
    tensors = (
        (name, tensor.clone() if name == _DECODER_BIAS else tensor) for name, tensor in publish(model, table(config))
    )
    return published, tensors


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> BERT:
    """Build the model that config.json describes and fill it from `tensors`.

    Directories of the bare encoder (whose names lack "bert."), without pooler or without heads are read too; a log line
    says which parts are new, and which heads of other tasks were left out. An output matrix on disk that differs from
    the embedding makes the model untied.

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    tied = _is_tied(published, tensors)
    config = _config(published, tied)
    model = build_empty(lambda: BERT(config))
    missing = [part for part, (begins, _, _) in _PARTS.items() if not _any_begins(tensors, begins)]
    for part in missing:
        setattr(model, part, None)
    ignored = {name for name in tensors if _BUFFER.fullmatch(name) or _TASK_HEAD.fullmatch(name)}
    rows = [row for row in table(config) if row.parameters[0].split(".")[0] not in missing]
    if tied:
        ignored |= {_DECODER_WEIGHT, _DECODER_BIAS}
    elif _DECODER_BIAS in tensors:  # the one that transformers computes with
        rows = [row for row in rows if row.name != "cls.predictions.bias"]
        ignored.add("cls.predictions.bias")
    else:
        rows = [row for row in rows if row.name != _DECODER_BIAS]
    found = [Stored(_found(row.name, tensors), row.parameters) for row in rows]
    fill(model, found, tensors, ignored=ignored, dtype=dtype, device=device)
    for part in missing:
        setattr(model, part, _new_part(part, model))
    _report(missing, sorted(name for name in ignored if _TASK_HEAD.fullmatch(name)))
    return model


def _any_begins(tensors: Mapping[str, Tensor], begins: str) -> bool:
    return any(name.startswith((begins, begins.removeprefix("bert."))) for name in tensors)


def _new_part(part: str, model: BERT) -> nn.Module:
    new = _PARTS[part][1](model.config)
    initialize(new, model.config.initial_std)
    embedding = model.embeddings.token.weight
    return new.to(device=embedding.device, dtype=embedding.dtype)


def _report(missing: list[str], left_out: list[str]) -> None:
    if missing:
        logger.warning("newly initialised, the checkpoint has none: %s", ", ".join(_PARTS[part][2] for part in missing))
    if left_out:
        logger.warning("left out, not part of the pretrained model: %s", ", ".join(left_out))


def _found(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the name under which a tensor is stored: without "bert." in files of the bare encoder, or spelled as in
    the files converted from TensorFlow."""
    bare = name.removeprefix("bert.")
    for candidate in (name, bare):
        old = candidate.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for spelling in (candidate, old):
            if spelling in tensors:
                return spelling
    return name


def _is_tied(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    decoder, embedding = _DECODER_WEIGHT, _found("bert.embeddings.word_embeddings.weight", tensors)
    if decoder not in tensors or embedding not in tensors:
        return True
    if not published.get("tie_word_embeddings", True):
        return False
    return torch.equal(tensors[decoder], tensors[embedding])


def _config(published: Mapping[str, Any], tied: bool) -> BERTConfig:
    published = {**_DEFAULTS, **published}
    require_counts(published, _SIZES)
    refuse_set(published, ("is_decoder", "add_cross_attention", "quantization_config", "pruned_heads"))
    kind = published.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise InputError(f"config.json: position_embedding_type {kind!r} is not supported, expected 'absolute'")
    activation = published["hidden_act"]
    if activation not in _ACTIVATIONS:
        expected = ", ".join(_ACTIVATIONS)
        raise InputError(f"config.json: hidden_act {activation!r} is not supported, expected one of {expected}")
    return BERTConfig(
        **{ours: published[theirs] for theirs, ours in {**_SIZES, **_REST}.items()},
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        tie_output=tied,
    )


def table(config: BERTConfig) -> list[Stored]:
    """List the tensors of a `BertForPreTraining` checkpoint."""
    names = {
        "bert.embeddings.word_embeddings.weight": "embeddings.token.weight",
        "bert.embeddings.position_embeddings.weight": "embeddings.position.weight",
        "bert.embeddings.token_type_embeddings.weight": "embeddings.segment.weight",
    }
    maps = {"bert.embeddings.LayerNorm": "embeddings.norm"}
    for layer in range(config.layers):
        theirs, ours = f"bert.encoder.layer.{layer}", f"blocks.{layer}"
        for part in ("query", "key", "value"):
            maps[f"{theirs}.attention.self.{part}"] = f"{ours}.attention.{part}"
        maps |= {
            f"{theirs}.attention.output.dense": f"{ours}.attention.output",
            f"{theirs}.attention.output.LayerNorm": f"{ours}.attention_norm",
            f"{theirs}.intermediate.dense": f"{ours}.feed_forward.up",
            f"{theirs}.output.dense": f"{ours}.feed_forward.down",
            f"{theirs}.output.LayerNorm": f"{ours}.feed_forward_norm",
        }
    maps |= {
        "bert.pooler.dense": "pooler.dense",
        "cls.predictions.transform.dense": "masked_head.dense",
        "cls.predictions.transform.LayerNorm": "masked_head.norm",
        "cls.seq_relationship": "next_sentence.dense",
    }
    for theirs, ours in maps.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    names["cls.predictions.bias"] = "masked_head.bias"
    if not config.tie_output:
        names |= {_DECODER_WEIGHT: "masked_head.output.weight", _DECODER_BIAS: "masked_head.bias"}
    return [Stored(theirs, (ours,)) for theirs, ours in names.items()]
