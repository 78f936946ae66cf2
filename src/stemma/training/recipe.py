"""A recipe: everything that decides a training run, in one validated YAML file.

    recipe = load_recipe("gpt/tiny", ["training.steps=500", "data.source=books/*.txt"])

A recipe is found by its shipped name (`gpt/tiny`) or by path. Any key can be overridden as `section.key=value`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stemma.files import write_whole
from stemma.training import schedules
from stemma.training.architecture import Where, expand_model, expand_objective, find_family
from stemma.training.recipe_source import RecipeSource, find_recipe


class Section(BaseModel):
    """A part of a recipe: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TokenizerRecipe(Section):
    """A published tokenizer (`path`: folder, file or hub id), or one trained on the corpus's training split."""

    path: str | None = None
    kind: Literal["bpe", "wordpiece", "unigram", "word", "elmo"] = "bpe"
    vocabulary: int = Field(default=8192, ge=257)


class DataRecipe(Section):
    """The corpus (see `stemma.data.corpora.CorpusSource`).

    Args:
        source: a path, a glob, a folder, "-", `hf:owner/name`, or "python" (the text that ships with Python). Of pairs
            (see `stemma.data.parallel_corpora.ParallelSource`): two files, "train.de,train.en", or "python".
        field: of JSONL, CSV, Parquet and data sets: which field is the text.
        documents: what is one document of a text file. format: where the file's name does not tell.
        held_out: share of the documents kept for evaluation, or the path of a corpus of its own.
    """

    source: str = "python"
    field: str = "text"
    documents: Literal["file", "paragraph", "line"] = "file"
    held_out: float | str = 0.05
    format: str | None = None


class ScheduleRecipe(Section):
    """The learning rate over the updates, as a factor of the peak (see schedules.py).

    Args:
        warmup: updates of linear warm-up; below 1: a share of all updates. final: factor at the end of the decay.
        until: update at which the decay ends; default: the last one.
    """

    name: Literal["constant", "linear", "cosine", "inverse_square_root", "t5", "gpt1"] = "cosine"
    warmup: float = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    until: int | None = Field(default=None, gt=0)

    def warmup_updates(self, total: int) -> int:
        """Return the updates of warm-up of a run of `total`."""
        return round(self.warmup if self.warmup >= 1 else self.warmup * total)


class RampRecipe(Section):
    """A batch that grows linearly from `start` sequences to the full one over the first `steps` updates (GPT-3)."""

    start: int = Field(gt=0)
    steps: int = Field(gt=0)


class TrainingRecipe(Section):
    """What decides the resulting weights.

    Args:
        steps: number of updates; or `epochs`: passes over the training split.
        batch: sequences per update, over all micro-batches and workers.
        length: tokens per sequence; default: the model's context.
        learning_rate: peak; on the command line also `training.lr`. layer_decay: what each layer's rate is multiplied
            by from the output down (see layer_decay.py); null: all have the same.
        optimizer: "adamw"; T5's "adafactor" (see adafactor.py), whose rate is relative to the size of the weights; or
            ELMo's "adagrad", in which `accumulator` is what the sums of squared gradients begin with.
        betas, epsilon, weight_decay: of AdamW. bias_correction: of its averages; BERT was trained without.
        clip: largest norm of the gradient; null: no clipping. clip_embeddings: false: the gradients of embeddings are
            no part of that, and stay as they are (google-research/adversarial_text).
        ema: decay per update of an exponential moving average of the weights, which is then what is evaluated and
            published; null: none.
        average: the mean of so many checkpoints, the last ones, is what is published, beside the best weights; null:
            the last weights. Needs `output.keep` of at least as many.
        non_finite_limit: updates in a row with a loss or gradient that is not finite before the run stops.
    """

    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch: int = Field(gt=0)
    ramp: RampRecipe | None = None
    length: int | None = Field(default=None, gt=0)
    learning_rate: float = Field(gt=0)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    optimizer: Literal["adamw", "adafactor", "adagrad"] = "adamw"
    accumulator: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    bias_correction: bool = True
    clip: float | None = Field(default=1.0, gt=0)
    clip_embeddings: bool = True
    schedule: ScheduleRecipe = ScheduleRecipe()
    ema: float | None = Field(default=None, gt=0, lt=1)
    average: int | None = Field(default=None, gt=0)
    non_finite_limit: int = Field(default=3, gt=0)

    @model_validator(mode="after")
    def _one_duration(self) -> "TrainingRecipe":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, the other one null")
        return self

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of the update after `step` updates, in a run of `steps`."""
        schedule = self.schedule
        total = schedule.until or steps
        warmup = schedule.warmup_updates(total)
        factor = schedules.factor(schedule.name, step, total=total, warmup=warmup, final=schedule.final)
        return self.learning_rate * factor


class EvaluationRecipe(Section):
    """Held-out evaluation.

    Args:
        every: updates between evaluations; one more follows the last update.
        tokens: evaluate on about so many tokens, drawn evenly over the held-out documents; null: on all of them.
        patience: stop after so many evaluations in a row without a better loss; null: never.
    """

    every: int = Field(default=100, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, gt=0)


class ExecutionRecipe(Section):
    """How the computation is carried out; the mathematics stays the same, up to rounding.

    Args:
        micro_batch: most sequences that one worker computes at once; default: its whole share of the batch.
        precision: of the matrix products; weights and optimizer stay float32. "auto" is bfloat16 where the hardware
            multiplies it natively (see hardware.py), else float32.
        device: "auto" is CUDA where there is one. compile: torch.compile each block.
        checkpoint_activations: recompute each block in the backward pass.
    """

    micro_batch: int | None = Field(default=None, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    checkpoint_activations: bool = False


class OutputRecipe(Section):
    """What is written and how often.

    Args:
        save_every: updates between checkpoints; one more follows the last update. keep: how many stay on disk.
        log_every: updates per line of metrics. wandb: name of a Weights & Biases project.
    """

    save_every: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0)
    log_every: int = Field(default=10, gt=0)
    tensorboard: bool = False
    wandb: str | None = None


class RunRecipe(Section):
    """What the trainer needs to know of any run."""

    training: TrainingRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    execution: ExecutionRecipe = ExecutionRecipe()
    output: OutputRecipe = OutputRecipe()
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _checkpoints_to_average(self) -> "RunRecipe":
        average = self.training.average
        if average is not None and self.output.keep < average:
            raise ValueError(f"output.keep is {self.output.keep}, less than the training.average of {average}")
        if average is not None and self.training.ema is not None:
            raise ValueError("training.ema and training.average exclude each other")
        return self


Run = TypeVar("Run", bound=RunRecipe)


def evaluated_each_epoch(recipe: Run, steps: int, examples: int) -> Run:
    """Return a recipe that evaluates after each epoch of so many examples, unless it says when."""
    if "every" in recipe.evaluation.model_fields_set:
        return recipe
    every = min(max(examples // recipe.training.batch, 1), steps)
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"every": every})})


class Recipe(RunRecipe):
    """A whole recipe. `model` and `objective` are checked against the family's own classes by `load_recipe`.

    Args:
        model: `preset` and fields of the family's configuration; the vocabulary follows from the tokenizer.
        objective: `name` (default: the family's first) and fields of the objective.
    """

    family: str
    model: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: DataRecipe = DataRecipe()


# Sections that decide the resulting weights, and the one that decides their last bits only.
DECISIVE = ("family", "model", "objective", "tokenizer", "data", "training", "seed")
ROUNDING = ("execution",)


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override, validate and expand a recipe: the preset of the model becomes all of its fields.

    Args:
        overrides: `section.key=value` with a YAML value.
    Raises:
        InputError: no such recipe; an unknown key (naming the closest known one) or a bad value, with file and line.
    """
    source = RecipeSource(find_recipe(name_or_path))
    for override in overrides:
        source.override(override)
    try:
        recipe = Recipe.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, Recipe) from error
    return expanded(recipe, source.where)


def expanded(recipe: Recipe, where: Where = ".".join) -> Recipe:
    """Return the recipe with every field of its model and the name of its objective; again, the same.

    Args:
        where: says where a key of the recipe was written, for errors.
    Raises:
        InputError: unknown family, preset, objective or field, or a bad value.
    """
    family = find_family(recipe.family, where)
    model = expand_model(family, recipe.model, where)
    objective = expand_objective(family, recipe.objective, where)
    return recipe.model_copy(update={"model": model, "objective": objective})


def write_recipe(recipe: RunRecipe, path: Path) -> None:
    """Write the whole recipe, defaults included, so that it can be run again as it is."""
    content = _content(recipe)
    with write_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def differences(recipe: RunRecipe, other: RunRecipe, sections: Iterable[str] = DECISIVE) -> list[str]:
    """Return the keys of the given sections that differ, as "section.key: here, there".

    The number of updates may differ where the schedule of the learning rate does not depend on it: such a run may be
    prolonged.
    """
    return changed(_comparable(recipe, sections), _comparable(other, sections))


def changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return the keys of two contents of recipes that differ, as "section.key: here, there"."""
    here, there = dict(_flat(here)), dict(_flat(there))
    keys = [*here, *(key for key in there if key not in here)]
    return [f"{key}: {here.get(key)}, {there.get(key)}" for key in keys if here.get(key) != there.get(key)]


def _comparable(recipe: RunRecipe, sections: Iterable[str]) -> dict[str, Any]:
    content = _content(recipe, sections)
    schedule = recipe.training.schedule
    if "training" in content and (schedule.until is not None or schedule.name not in schedules.DEPEND_ON_TOTAL):
        del content["training"]["steps"], content["training"]["epochs"]
    return content


def _content(recipe: RunRecipe, sections: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the recipe's sections, what is trained on what before how."""
    content = recipe.model_dump(mode="json", include=None if sections is None else set(sections))
    return content | {name: content.pop(name) for name in RunRecipe.model_fields if name in content}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
