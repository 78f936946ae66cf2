"""A fine-tuned model as adapters of its base checkpoint, in the layout of Hugging Face PEFT, without the base.

Beside the adapters stands what the base does not have: the output layer, BERT's pooler (it is trained too, and new
where the base has none), and the embeddings of the special tokens that a GPT is given, which stay as they were drawn.
PEFT's model needs these tokens before it takes the adapter: `model.resize_token_embeddings(len(tokenizer))`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import families
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.bert import checkpoint as bert_checkpoint
from stemma.families.bert.model import BERT
from stemma.families.directory import read_json
from stemma.families.gpt.model import GPT
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.finetuning.heads import WithHead
from stemma.finetuning.heads_published import backbone_name, head_names
from stemma.finetuning.reading import CLASSIFY, DELIMITER, START, prepared
from stemma.finetuning.recipe import LoRARecipe
from stemma.training.adapters import CONFIG, load_adapter, save_adapter
from stemma.training.lora import LoRAConfig, add_lora

_TASK_TYPES = {"tagging": "TOKEN_CLS", "answering": "QUESTION_ANS"}


def adapt(model: Any, lora: LoRARecipe) -> None:
    """Give a model adapters, in place, so that only these and its output layer are trained.

    Raises:
        InputError: it has no layers of these names, or is a Transformer, whose hidden places are published in another
            order than ours, which no adapter knows of.
    """
    if isinstance(model, Transformer):
        raise InputError("lora: a Transformer is trained whole; expected null")
    heads = ["output", *["dense"] * (model.dense is not None)] if isinstance(model, WithHead) else []
    if _pooler(model):
        heads.append("backbone.pooler")
    add_lora(model, LoRAConfig(**lora.model_dump()), trainable=heads)


def save_adapted(model: Any, tokenizer: Tokenizer, kind: str, directory: Path, base: str) -> None:
    """Write the adapters of a model, what the base does not have, and the tokenizer.

    Raises:
        OSError: it could not be written.
    """
    head = isinstance(model, WithHead)
    backbone = model.backbone if head else model
    names = _published_names(model, kind) if head else {}
    extra = {theirs: model.get_parameter(ours) for ours, theirs in names.items()}
    tokens = [tokenizer.id(name) for name in (START, DELIMITER, CLASSIFY)] if isinstance(backbone, GPT) else []
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory)
    save_adapter(backbone, directory, base, _task_type(backbone, kind, head), extra=extra, tokens=tokens)


def is_adapted(directory: Path) -> bool:
    """Return whether `save_adapted` wrote a directory."""
    return (directory / CONFIG).is_file()


def load_adapted(directory: Path, tokenizer: Tokenizer, device: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the base with its adapters, without an output layer, and the other tensors by their published names.

    Raises:
        InputError: the base is not there, or the adapters do not fit it.
    """
    base = read_json(directory / CONFIG).get("base_model_name_or_path")
    try:
        backbone = families.load(str(base), dtype=torch.float32)
    except InputError as error:
        raise InputError(f"{directory / CONFIG}: the base of these adapters: {error}") from error
    backbone, _ = prepared(backbone, tokenizer)
    extra = load_adapter(backbone, directory)
    return backbone.to(device or "cpu").eval(), extra


@torch.no_grad()
def fill_head(model: WithHead, kind: str, tensors: dict[str, Tensor], directory: Path) -> None:
    """Give a model the output layer that `load_adapted` returned the tensors of.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    for ours, theirs in _published_names(model, kind).items():
        parameter = model.get_parameter(ours)
        if theirs not in tensors or tensors[theirs].shape != parameter.shape:
            raise InputError(f"{directory}: no tensor '{theirs}' of {list(parameter.shape)}, part of the output layer")
        parameter.copy_(tensors[theirs])


def _published_names(model: WithHead, kind: str) -> dict[str, str]:
    """Return our names and the published ones of what is trained beside the adapters."""
    relative = getattr(model.backbone.config, "relative", "")
    names = head_names(model.backbone, kind, relative)
    if _pooler(model):
        rows = {row.parameters[0]: row.name for row in bert_checkpoint.table(model.backbone.config)}
        poolers = {ours: theirs for ours, theirs in rows.items() if ours.startswith("pooler.")}
        names |= {f"backbone.{ours}": backbone_name(theirs, kind, relative) for ours, theirs in poolers.items()}
    return names


def _pooler(model: Any) -> bool:
    return isinstance(model, WithHead) and model.pooled and isinstance(model.backbone, BERT)


def _task_type(backbone: Any, kind: str, head: bool) -> str | None:
    """Return PEFT's word for the class of transformers that has our output layer; None: it has no word for it."""
    if not head:
        return "CAUSAL_LM" if isinstance(backbone, GPT) else "SEQ_2_SEQ_LM" if isinstance(backbone, T5) else None
    if kind == "choice" and isinstance(backbone, BERT):
        return None
    return _TASK_TYPES.get(kind, "SEQ_CLS")
