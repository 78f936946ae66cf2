"""BERT's published names <-> ours: Hugging Face `bert` and its relatives, with and without heads, in the older
spellings too."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.bert.layouts import LAYOUTS, Layout
from stemma.families.bert.model import BERT, BERTConfig, MaskedHead, NextSentence, Pooler, initialize
from stemma.families.weights import Stored, build_empty, fill, publish, refuse_set, require_counts

logger = logging.getLogger(__name__)

MODEL_TYPES = tuple(LAYOUTS)

# transformers' words for our activations, the one to write first.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_BUFFER = re.compile(r"(\w+\.)?embeddings\.(position_ids|token_type_ids)")
_TASK_HEAD = re.compile(r"(classifier|classifier\.out_proj|qa_outputs)\.(weight|bias)")

# Parts that a directory may lack: our module, and what it is.
_PARTS: dict[str, tuple[Callable[[BERTConfig], nn.Module], str]] = {
    "pooler": (Pooler, "the pooler"),
    "masked_head": (MaskedHead, "the head for masked tokens"),
    "next_sentence": (NextSentence, "the head for sentence pairs"),
}


def to_published(model: BERT) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time.

    The head for sentence pairs is published of a BERT only: its relatives have none.
    """
    config, layout = model.config, LAYOUTS[model.config.relative]
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    published = {
        "model_type": config.relative,
        "architectures": [layout.architecture],
        **{theirs: getattr(config, ours) for theirs, ours in {**layout.sizes, **layout.rest}.items()},
        layout.keys["feed_forward"]: config.feed_forward or 4 * config.hidden,
        layout.keys["context"]: config.context + config.first_position,
        layout.activation: activations[config.activation],
        "pad_token_id": layout.padding,
        "tie_word_embeddings": config.tie_output,
    }
    # The bias has two names where the output is not tied; a file holds no tensor twice.
    copied = {f"{layout.decoder}.bias"} - {layout.bias}
    tensors = ((name, tensor.clone() if name in copied else tensor) for name, tensor in publish(model, table(config)))
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
    layout = LAYOUTS[published["model_type"]]
    tied = _is_tied(published, tensors, layout)
    config = _config(published, tied, layout)
    model = build_empty(lambda: BERT(config))
    missing = [part for part in _PARTS if not _is_there(part, tensors, layout)]
    for part in missing:
        setattr(model, part, None)
    ignored = {name for name in tensors if _BUFFER.fullmatch(name) or _TASK_HEAD.fullmatch(name)}
    rows = [row for row in table(config) if row.parameters[0].split(".")[0] not in missing]
    weight, bias = f"{layout.decoder}.weight", f"{layout.decoder}.bias"
    if tied:
        ignored |= {weight, bias} - {layout.bias}
    elif bias in tensors and bias != layout.bias:  # the one that transformers computes with
        rows = [row for row in rows if row.name != layout.bias]
        ignored.add(layout.bias)
    elif bias != layout.bias:
        rows = [row for row in rows if row.name != bias]
    found = [Stored(_found(row.name, tensors, layout), row.parameters) for row in rows]
    fill(model, found, tensors, ignored=ignored, dtype=dtype, device=device)
    for part in missing:
        setattr(model, part, _new_part(part, model))
    new = [part for part in missing if part in layout.expected]
    _report(new, sorted(name for name in ignored if _TASK_HEAD.fullmatch(name)))
    return model


def _is_there(part: str, tensors: Mapping[str, Tensor], layout: Layout) -> bool:
    begins = getattr(layout, part)
    if begins is None:
        return False
    own = (begins, begins.removeprefix(layout.encoder))
    return any(name.startswith(own) for name in tensors) or (
        part == "pooler" and f"{layout.pooler_of_classifiers}.weight" in tensors
    )


def _new_part(part: str, model: BERT) -> nn.Module:
    new = _PARTS[part][0](model.config)
    initialize(new, model.config.initial_std)
    embedding = model.embeddings.token.weight
    return new.to(device=embedding.device, dtype=embedding.dtype)


def _report(missing: list[str], left_out: list[str]) -> None:
    if missing:
        logger.warning("newly initialised, the checkpoint has none: %s", ", ".join(_PARTS[part][1] for part in missing))
    if left_out:
        logger.warning("left out, not part of the pretrained model: %s", ", ".join(left_out))


def _found(name: str, tensors: Mapping[str, Tensor], layout: Layout) -> str:
    """Return the name under which a tensor is stored: without "bert." in files of the bare encoder, spelled as in the
    files converted from TensorFlow, or the pooler's name in a classifier."""
    bare = name.removeprefix(layout.encoder)
    for candidate in (name, bare, name.replace(layout.pooler, layout.pooler_of_classifiers)):
        old = candidate.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for spelling in (candidate, old):
            if spelling in tensors:
                return spelling
    return name


def _is_tied(published: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> bool:
    decoder = f"{layout.decoder}.weight"
    embedding = _found(f"{layout.encoder}embeddings.word_embeddings.weight", tensors, layout)
    if decoder not in tensors or embedding not in tensors:
        return True
    if not published.get("tie_word_embeddings", True):
        return False
    return torch.equal(tensors[decoder], tensors[embedding])


def _config(published: Mapping[str, Any], tied: bool, layout: Layout) -> BERTConfig:
    kind = published["model_type"]
    published = {**layout.defaults, **published}
    require_counts(published, layout.sizes)
    refuse_set(published, ("is_decoder", "add_cross_attention", "quantization_config", "pruned_heads"))
    positions = published.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise InputError(f"config.json: position_embedding_type {positions!r} is not supported, expected 'absolute'")
    activation = published[layout.activation]
    if activation not in _ACTIVATIONS:
        expected = ", ".join(_ACTIVATIONS)
        raise InputError(
            f"config.json: {layout.activation} {activation!r} is not supported, expected one of {expected}"
        )
    if layout.padding is not None and published.get("pad_token_id", layout.padding) != layout.padding:
        raise InputError(
            f"config.json: pad_token_id is {published['pad_token_id']!r}, expected {layout.padding} of a {kind}: the "
            "first position is the one behind it"
        )
    ours = {ours: published[theirs] for theirs, ours in {**layout.sizes, **layout.rest}.items()}
    ours["context"] -= layout.first_position
    # A DistilBERT has no segments.
    return BERTConfig(
        **{"segments": 0, **ours},
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        tie_output=tied,
        relative=kind,
    )


def table(config: BERTConfig) -> list[Stored]:
    """List the tensors of a checkpoint that holds all that its layout has."""
    layout = LAYOUTS[config.relative]
    names = layout.names(config.layers) | {layout.bias: "masked_head.bias"}
    if not config.tie_output:
        names |= {f"{layout.decoder}.weight": "masked_head.output.weight", f"{layout.decoder}.bias": "masked_head.bias"}
    return [Stored(theirs, (ours,)) for theirs, ours in names.items()]
