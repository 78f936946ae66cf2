"""A fine-tuned model on disk: a checkpoint directory of its family, with the output layer where transformers has it.

Beside it `task.json` says what the model does, so that it can be used on further texts.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import (
    Backbone,
    StoredTensors,
    read_config,
    replace_checkpoint,
    resolve,
    write_json,
    write_weights,
)
from stemma.finetuning.adapted import fill_head, is_adapted, load_adapted, save_adapted
from stemma.finetuning.heads import WithHead
from stemma.finetuning.heads_published import backbone_name, backbone_prefix, head_names, published_config
from stemma.finetuning.reading import START, tokenizer_of
from stemma.training.lora import lora_layers

TASK = "task.json"


@dataclass(frozen=True)
class TaskDescription:
    """What a fine-tuned model was made to do.

    Args:
        kind, formulation, pattern: see `recipe.TaskRecipe`. label_names: of the classes; empty: a regression.
        words: what is written for each label. pair: whether it reads two texts. longest: most tokens of an input.
        longest_target, beams, length_penalty: of what is written. metric: by which it was judged.
        stride, no_answer: of answers in a context: see `answering.Spans`.
    """

    kind: str
    formulation: str
    label_names: tuple[str, ...]
    pair: bool
    longest: int
    pattern: str | None = None
    words: tuple[str, ...] = ()
    longest_target: int = 128
    beams: int = 1
    length_penalty: float = 1.0
    metric: str | None = None
    stride: int = 128
    no_answer: bool = False


# What a Transformer does that no `finetune` has taught; searched as in its paper (section 6.1).
TRANSLATION = TaskDescription("text", "text", (), False, longest=1024, longest_target=512, beams=4, length_penalty=0.6)


def writes_without_finetuning(directory: Path) -> bool:
    """Return whether a checkpoint does a task as it was pretrained: a Transformer writes a text for its source."""
    if (directory / TASK).is_file() or not (directory / "config.json").is_file():
        return False
    return read_config(directory)["model_type"] in families.FAMILIES["transformer"].model_types


def shape_of_head(task: TaskDescription) -> tuple[int, bool, bool]:
    """Return how many numbers an output layer gives, whether it reads whole texts, and whether pairs of them (see
    `heads.WithHead`)."""
    if task.kind == "answering":
        return 2, False, False
    return max(len(task.label_names), 1), task.kind != "tagging", task.pair


def save_finetuned(model: Any, tokenizer: Tokenizer, task: TaskDescription, directory: Path, base: str = "") -> None:
    """Write model, tokenizer and task; transformers loads it where it has such a class (see heads_published.py).

    Args:
        base: the checkpoint of which a model with adapters is written without (see adapted.py).
    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    if lora_layers(model):
        save_adapted(model, tokenizer, task.kind, directory, base)
    elif isinstance(model, WithHead):
        _save_with_head(model, tokenizer, task, directory)
    else:
        families.save(model, tokenizer, directory)
    write_json(directory / TASK, asdict(task))


def load_finetuned(path_or_hub_id: str | Path, *, device: Any = None) -> tuple[Any, Tokenizer, TaskDescription]:
    """Load what `save_finetuned` wrote, or a Transformer: the model in eval mode, its tokenizer and its task.

    Raises:
        InputError: no such directory, or no fine-tuned model in it.
    """
    directory = resolve(path_or_hub_id)
    if writes_without_finetuning(directory):
        return families.load(directory, device=device), load_tokenizer(directory), TRANSLATION
    if not (directory / TASK).is_file():
        raise InputError(f"{directory}: no {TASK}, so it holds no fine-tuned model; expected what `finetune` wrote")
    try:
        content = json.loads((directory / TASK).read_text(encoding="utf-8"))
        content |= {"label_names": tuple(content["label_names"]), "words": tuple(content["words"])}
        task = TaskDescription(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / TASK}: not the description of a task ({error})") from error
    if is_adapted(directory):
        tokenizer = load_tokenizer(directory)
        return _load_adapted(directory, tokenizer, task, device), tokenizer, task
    if task.formulation != "head":
        return families.load(directory, device=device), load_tokenizer(directory), task
    model = _load_with_head(directory, task, device)
    return model, tokenizer_of(model.backbone, directory), task


def _load_adapted(directory: Path, tokenizer: Tokenizer, task: TaskDescription, device: Any) -> Any:
    backbone, tensors = load_adapted(directory, tokenizer, device)
    if task.formulation != "head":
        return backbone
    model = WithHead(backbone, *shape_of_head(task))
    fill_head(model, task.kind, tensors, directory)
    return model.to(next(backbone.parameters()).device).eval()


def _save_with_head(model: WithHead, tokenizer: Tokenizer, task: TaskDescription, directory: Path) -> None:
    backbone = model.backbone
    config, tensors = families.family_of(backbone).to_published(backbone)
    published = published_config(backbone, task.kind, task.label_names, config)
    config |= {**published, "pad_token_id": _padding(tokenizer)}
    if "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = True  # there is no other output matrix: the heads of pretraining are left out
    with replace_checkpoint(directory) as staging:
        write_json(staging / "config.json", config)
        write_weights(_with_head_tensors(model, task.kind, config["model_type"], tensors), staging)
        tokenizer.save(staging)


def _padding(tokenizer: Tokenizer) -> int:
    """Return the id by which transformers finds the last token of a text that is no padding."""
    if tokenizer.pad is not None:
        return tokenizer.pad
    try:
        return tokenizer.separator
    except InputError:
        return tokenizer.id(START)  # GPT-1's has no special tokens but those of fine-tuning; this one is never last


def _with_head_tensors(
    model: WithHead, kind: str, model_type: str, tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    prefix = backbone_prefix(model.backbone, kind)
    # The heads of pretraining are no part of these classes.
    kept = ((name, tensor) for name, tensor in tensors if not name.startswith(("cls.", "lm_head.", "vocab_")))
    yield from ((prefix + backbone_name(name, kind, model_type), tensor) for name, tensor in kept)
    for ours, theirs in head_names(model.backbone, kind, model_type).items():
        yield theirs, model.get_parameter(ours).detach()


def _load_with_head(directory: Path, task: TaskDescription, device: Any) -> WithHead:
    config, stored = read_config(directory), StoredTensors(directory)
    branch = families.family(config["model_type"])
    names = head_names(branch.model, task.kind, config["model_type"])
    prefix = backbone_prefix(branch.model, task.kind)
    backbone = branch.from_published(config, Backbone(stored, prefix, names.values()), device=device)
    model = WithHead(backbone, *shape_of_head(task))
    with torch.no_grad():
        for ours, theirs in names.items():
            if theirs not in stored:
                raise InputError(f"{directory}: no tensor '{theirs}', the output layer of the fine-tuned model")
            model.get_parameter(ours).copy_(stored[theirs])
    return model.to(next(backbone.parameters()).device).eval()
