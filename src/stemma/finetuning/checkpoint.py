"""A fine-tuned model on disk: a checkpoint directory of its family, with the output layer where transformers has it.

Beside it `task.json` says what the model does, so that it can be used on further texts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.directory import (
    StoredTensors,
    read_config,
    replace_checkpoint,
    resolve,
    write_json,
    write_weights,
)
from stemma.families.gpt.model import GPT
from stemma.finetuning.heads import WithHead

TASK = "task.json"


@dataclass(frozen=True)
class TaskDescription:
    """What a fine-tuned model was made to do.

    Args:
        kind, formulation, pattern: see `recipe.TaskRecipe`. label_names: of the classes; empty: a regression.
        words: what is written for each label. pair: whether it reads two texts. longest: most tokens of an input.
    """

    kind: str
    formulation: str
    label_names: tuple[str, ...]
    pair: bool
    longest: int
    pattern: str | None = None
    words: tuple[str, ...] = ()


def save_finetuned(model: Any, tokenizer: Tokenizer, task: TaskDescription, directory: Path) -> None:
    """Write model, tokenizer and task; `transformers.AutoModelForSequenceClassification` loads BERT's and GPT's.

    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    if isinstance(model, WithHead):
        _save_with_head(model, tokenizer, task, directory)
    else:
        families.save(model, tokenizer, directory)
    write_json(directory / TASK, asdict(task))


def load_finetuned(path_or_hub_id: str | Path, *, device: Any = None) -> tuple[Any, Tokenizer, TaskDescription]:
    """Load what `save_finetuned` wrote: the model in eval mode, its tokenizer and its task.

    Raises:
        InputError: no such directory, or no fine-tuned model in it.
    """
    directory = resolve(path_or_hub_id)
    if not (directory / TASK).is_file():
        raise InputError(f"{directory}: no {TASK}, so it holds no fine-tuned model; expected what `finetune` wrote")
    try:
        content = json.loads((directory / TASK).read_text(encoding="utf-8"))
        content |= {"label_names": tuple(content["label_names"]), "words": tuple(content["words"])}
        task = TaskDescription(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / TASK}: not the description of a task ({error})") from error
    tokenizer = load_tokenizer(directory)
    if task.formulation != "head":
        return families.load(directory, device=device), tokenizer, task
    return _load_with_head(directory, task, device), tokenizer, task


def _save_with_head(model: WithHead, tokenizer: Tokenizer, task: TaskDescription, directory: Path) -> None:
    backbone = model.backbone
    config, tensors = families.family_of(backbone).to_published(backbone)
    names = task.label_names or ("score",)
    config |= {
        "architectures": [_architecture(backbone, config)],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification" if task.label_names else "regression",
        # Where a model reads the last token, this is how transformers finds it.
        "pad_token_id": tokenizer.separator if tokenizer.pad is None else tokenizer.pad,
        "dtype": "float32",
    }
    with replace_checkpoint(directory) as staging:
        write_json(staging / "config.json", config)
        write_weights(_with_head_tensors(model, tensors), staging)
        tokenizer.save(staging)


def _architecture(backbone: Any, config: Mapping[str, Any]) -> str:
    """Return transformers' name for it, where there is one."""
    if isinstance(backbone, BERT):
        return "BertForSequenceClassification"
    if isinstance(backbone, GPT):
        first = {"openai-gpt": "OpenAIGPT", "gpt2": "GPT2"}.get(config["model_type"], type(backbone).__name__)
        return f"{first}ForSequenceClassification"
    return f"{type(backbone).__name__}ForSequenceClassification"


def _with_head_tensors(model: WithHead, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    # The heads of pretraining are no part of these classes.
    yield from ((name, tensor) for name, tensor in tensors if not name.startswith(("cls.", "lm_head.")))
    for ours, theirs in _head_names(model).items():
        yield theirs, model.get_parameter(ours).detach()


def _head_names(model: WithHead) -> dict[str, str]:
    """Return our names of the new layers' parameters and the published ones: transformers', THUDM/GLM's for GLM."""
    if isinstance(model.backbone, BERT):
        return {"output.weight": "classifier.weight", "output.bias": "classifier.bias"}
    if isinstance(model.backbone, GPT):
        return {"output.weight": "score.weight"}
    names = {"dense": "pool_layer", "output": "out_proj"}
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}


class _Without(Mapping[str, Tensor]):
    """The tensors of a directory without some."""

    def __init__(self, tensors: StoredTensors, left_out: set[str]) -> None:
        self._tensors, self._names = tensors, [name for name in tensors if name not in left_out]

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _load_with_head(directory: Path, task: TaskDescription, device: Any) -> WithHead:
    config, stored = read_config(directory), StoredTensors(directory)
    branch = families.family(config["model_type"])
    outputs = max(len(task.label_names), 1)
    heads = {"classifier.weight", "classifier.bias", "score.weight"}
    heads |= {f"{layer}.{kind}" for layer in ("pool_layer", "out_proj") for kind in ("weight", "bias")}
    backbone = branch.from_published(config, _Without(stored, heads), device=device)
    model = WithHead(backbone, outputs, pooled=True)
    with torch.no_grad():
        for ours, theirs in _head_names(model).items():
            if theirs not in stored:
                raise InputError(f"{directory}: no tensor '{theirs}', the output layer of the fine-tuned model")
            model.get_parameter(ours).copy_(stored[theirs])
    return model.to(next(backbone.parameters()).device).eval()
