"""What decides a fine-tuning run, and the settings that each family is usually fine-tuned with."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from stemma.layers.ensembles import Mean
from stemma.training.recipe import RunRecipe, Section
from stemma.training.recipe_source import RecipeSource

# Sections that decide the resulting weights.
DECISIVE = ("model", "initialize", "lora", "task", "distillation", "data", "training", "seed")

# The published settings (Devlin et al. 2018, appendix A.3; Radford et al. 2018, section 4.1; Raffel et al. 2020,
# section 3.1; google-research/adversarial_text; THUDM/GLM's config_tasks; Vaswani et al. 2017, sections 5 and 6.1, at a
# rate for trained weights).
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "training": {
            "learning_rate": 3e-5,
            "batch": 32,
            "epochs": 3,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "schedule": {"name": "linear", "warmup": 0.1},
        }
    },
    "gpt": {
        "training": {
            "learning_rate": 6.25e-5,
            "batch": 32,
            "epochs": 3,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "schedule": {"name": "linear", "warmup": 0.002},
        },
        "task": {"language_model": 0.5},
    },
    "t5": {
        "training": {
            "learning_rate": 1e-4,
            "batch": 32,
            "epochs": 5,
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
            "schedule": {"name": "constant"},
        }
    },
    "transformer": {
        "training": {
            "learning_rate": 1e-4,
            "batch": 32,
            "epochs": 5,
            "betas": [0.9, 0.98],
            "weight_decay": 0.0,
            "schedule": {"name": "constant"},
        },
        "task": {"label_smoothing": 0.1, "beams": 4, "length_penalty": 0.6},
    },
    "lstm": {
        "training": {
            "learning_rate": 5e-4,
            "batch": 32,
            "epochs": 20,
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
            "schedule": {"name": "constant"},
        }
    },
    "glm": {
        "training": {
            "learning_rate": 1e-5,
            "batch": 16,
            "epochs": 10,
            "betas": [0.9, 0.999],
            "weight_decay": 0.1,
            "schedule": {"name": "linear", "warmup": 0.1},
        }
    },
    # Peters et al. 2018, section 3.3: the biLM is frozen, its mix gets dropout.
    "elmo": {
        "training": {
            "learning_rate": 1e-3,
            "batch": 32,
            "epochs": 5,
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
            "schedule": {"name": "linear", "warmup": 0.05},
        },
        "task": {"frozen": True, "dropout": 0.5},
    },
}
# Models that are much smaller than the published ones want larger rates.
SMALL_MODEL, SMALL_MODEL_RATE = 30_000_000, 3e-4
# Adapters want larger rates than whole weights do.
LORA_RATE = 3e-4
# Few examples are seen more often (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning").
FEW_EXAMPLES, FEW_EXAMPLES_EPOCHS = 1000, 10

Kind = Literal["classification", "regression", "tagging", "text", "choice", "answering"]
WRITTEN = ("text", "answering")  # kinds whose answers may be written, which takes long to measure
Formulation = Literal["auto", "head", "cloze", "text"]


class TaskRecipe(Section):
    """What is to be learned.

    Args:
        kind: of the task.
        formulation: "head": an output layer on the model; "cloze": GLM's blank with a word for each label; "text": the
            model writes the label, or the text. "auto": the family's own.
        pattern: of "cloze" and "text": the input, with {text}, {pair} and, of "cloze" labels, [MASK]; of choices what
            stands before an option, with {question}; of answers that are written {question} and {context}.
        label_words: of "cloze" and "text": what is written for each label; default: the label itself.
        metric: by which the best weights are chosen; default: accuracy, of a regression Pearson's correlation, of
            entities' tags F1, of answers F1, of texts BLEU (or: chrf, rouge1, rouge2, rougeL, exact_match).
        language_model: of a GPT with an output layer: weight of the language model's own loss.
        label_gain: of an LSTM that classifies texts: in training the label is predicted at every token of a text (see
            `classification.LabelGain`).
        dropout: before the output layer. frozen: of a model with an output layer: its own weights stay as they are.
        label_smoothing: share of each target, of classes, options or words, that is
            spread evenly over all of them in training (Szegedy et al. 2016, section 7).
        beams, length_penalty: of what is written: more than one beam searches the likeliest text.
    """

    kind: Kind = "classification"
    formulation: Formulation = "auto"
    pattern: str | None = None
    label_words: dict[str, str] = {}
    metric: str | None = None
    language_model: float = Field(default=0.0, ge=0)
    label_gain: bool = False
    dropout: float = Field(default=0.1, ge=0, lt=1)
    frozen: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    beams: int = Field(default=1, gt=0)
    length_penalty: float = 1.0


class DataRecipe(Section):
    """The labelled examples (see `stemma.data.labelled.read_labelled`).

    Args:
        train: a table; of tagging, a file in CoNLL's columns; of texts, also two files of lines with a comma between,
            "train.de,train.en"; of answering, SQuAD's JSON; of all a data set, "hf:owner/name[:config][:split]" or a
            folder (see `stemma.data.dataset_rows`), of whose classes the names are taken.
        dev: another, or the share of `train` that is held out to choose the best weights. Of a data set with a split.
        test: another that is looked at once, at the end; None: none.
        text, pair, label: columns; of CoNLL's numbers from 1, default the first and the last; of a data set to tag,
            those with the lists of words and of tags.
        source, target: columns, of texts.
        question, choices: columns, of choices (see `choice_data.read_choices`).
        header, quotes: of CSV and TSV.
        longest: most tokens of an input. longest_target: most tokens of a text that is learned or written.
        stride: of answering, by how many tokens the windows of a long context are apart.
        measured: most examples of dev, spread evenly over it; default: all, where answers may be written 500.
    """

    train: str
    dev: str | float = 0.1
    test: str | None = None
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    header: bool = True
    quotes: bool = True
    source: str = "source"
    target: str = "target"
    question: str | None = None
    choices: str = "choices"
    stride: int = Field(default=128, gt=0)
    longest: int = Field(default=256, gt=4)
    longest_target: int = Field(default=128, gt=0)
    measured: int | None = Field(default=None, gt=0)


class LoRARecipe(Section):
    """Adapters that are trained, with the output layer, instead of all weights (see `training.lora.LoRAConfig`).

    Args:
        rank: of each update. alpha: updates are scaled by alpha / rank. dropout: of the updates' input.
        targets: "all-linear", or names of the layers: query, key, value, output, up, gate, down.
    """

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class SoftTargetRecipe(Section):
    """Teachers of a classifier (see `distilled.SoftTargets`).

    Args:
        teachers: directories of fine-tuned classifiers.
        mean: of several (see `ensembles.soft_targets`), with `weights`.
        temperature: of teachers and student in training. weight: of the soft targets; the labels have the rest.
        unlabelled: a table of further texts, in the same columns, that only the teachers have an opinion on.
    """

    teachers: tuple[str, ...] = Field(min_length=1)
    mean: Mean = "arithmetic"
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=0.9, ge=0, le=1)
    unlabelled: str | None = None

    @model_validator(mode="after")
    def _a_weight_each(self) -> "SoftTargetRecipe":
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(f"{len(self.weights)} weights for {len(self.teachers)} teachers, expected one each")
        return self


class FineTuningRecipe(RunRecipe):
    """A whole recipe. `model` is a checkpoint directory or hub id. lora: null: all weights are trained. distillation:
    null: the labels alone teach."""

    model: str
    lora: LoRARecipe | None = None
    task: TaskRecipe = TaskRecipe()
    distillation: SoftTargetRecipe | None = None
    data: DataRecipe
    initialize: bool = False
    """Forget the weights and begin with random ones: what pretraining is compared against."""


def build_recipe(
    given: Mapping[str, Any], overrides: Iterable[str], *, family: str, parameters: int, examples: int
) -> FineTuningRecipe:
    """Return the family's usual settings for so many parameters and examples, with what is given instead of them.

    Args:
        given: sections and keys. overrides: `section.key=value`, which come last.
    Raises:
        InputError: an unknown key or a bad value.
    """
    content = deepcopy(FAMILY_DEFAULTS[family])
    training = content["training"]
    if parameters < SMALL_MODEL:
        training["learning_rate"] = max(training["learning_rate"], SMALL_MODEL_RATE)
    overrides = list(overrides)
    if _has_lora(given, overrides):
        training["learning_rate"] = LORA_RATE
    if examples < FEW_EXAMPLES:
        training["epochs"] = max(training["epochs"], FEW_EXAMPLES_EPOCHS)
    _merge(content, given)
    return _validated(RecipeSource.of(content), overrides)


def read_recipe(path: Path) -> FineTuningRecipe:
    """Read the recipe of an earlier run.

    Raises:
        InputError: it is none.
    """
    return _validated(RecipeSource(path), ())


def _has_lora(given: Mapping[str, Any], overrides: Iterable[str]) -> bool:
    source = RecipeSource.of(deepcopy(dict(given)))
    for override in overrides:
        source.override(override)
    return source.content.get("lora") is not None


def _validated(source: RecipeSource, overrides: Iterable[str]) -> FineTuningRecipe:
    for override in overrides:
        source.override(override)
    try:
        return FineTuningRecipe.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, FineTuningRecipe) from error


def _merge(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), dict):
            _merge(content[key], value)
        else:
            content[key] = value
