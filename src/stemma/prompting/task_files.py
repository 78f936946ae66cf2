"""Task files: the part of lm-evaluation-harness's YAML that its simple tasks need, read as that harness reads it.

Everything else in such a file is refused by its name, so that no task is silently another one here. What is ours stands
under one key, `stemma`, of which the harness knows nothing. Templates are Jinja's, in its sandbox.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stemma.errors import InputError
from stemma.prompting.extraction import Kind
from stemma.training.recipe_source import RecipeSource

Template = str | int | list[str]


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression ({error})") from error
    return text


Expression = Annotated[str, AfterValidator(_expression)]

# What is counted for each type of output; of the harness's other metrics none is, and a file that lists one is refused.
METRICS = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes"),
    "loglikelihood": ("acc", "perplexity"),
    "generate_until": ("exact_match",),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Generation(_Strict):
    """How an answer is written: greedily unless `do_sample`."""

    until: list[str] | str | None = None
    do_sample: bool = False
    temperature: float = 0.0
    top_p: float | None = None
    max_gen_toks: int = Field(default=256, ge=1)


class Filter(_Strict):
    """One step from what was written to the answer."""

    function: Literal["regex", "take_first", "take_first_k", "majority_vote", "remove_whitespace", "lowercase"]
    regex_pattern: Expression = r"#### (\-?[0-9\.\,]+)"
    group_select: int = 0
    fallback: str = "[invalid]"
    k: int | None = None


class Filters(_Strict):
    """Steps from what was written to the answer, under a name."""

    name: str
    filter: list[Filter]


class Metric(_Strict):
    """What is counted."""

    metric: str
    aggregation: Literal["mean", "perplexity"] = "mean"
    higher_is_better: bool = True
    ignore_case: bool = False
    ignore_punctuation: bool = False
    regexes_to_ignore: list[Expression] = []


class Shots(_Strict):
    """Where the solved examples come from, where they are not drawn from a split."""

    sampler: Literal["default", "first_n"] = "default"
    samples: list[dict[str, Any]] | None = None


class Ours(_Strict):
    """What only this library knows of.

    Args:
        answer: what the answers are, to be found and compared by `extraction.rule_named`. choices: capital letters.
        fractions: a/b is a number. gold: template of the answer; default: `doc_to_target`.
        reasoning: template of the written reasoning of a solved example. trigger: what makes a model reason.
        answer_trigger: what makes it answer then. reasoning_tokens, answer_tokens: at most.
        vote_temperature, vote_top_k: of the samples that vote. unconditional: the context without the question.
    """

    answer: Kind | None = None
    choices: str = Field(default="ABCDE", pattern="^[A-Z]+$")
    fractions: bool = False
    gold: str | None = None
    reasoning: str | None = None
    trigger: str = "Let's think step by step."
    answer_trigger: str | None = None
    reasoning_tokens: int = Field(default=128, ge=1)
    answer_tokens: int = Field(default=32, ge=1)
    vote_temperature: float = Field(default=0.7, gt=0)
    vote_top_k: int | None = Field(default=None, ge=1)
    unconditional: str = "Answer:"


class TaskFile(_Strict):
    """A task, as its file says it."""

    task: str
    dataset_path: str
    output_type: Literal["multiple_choice", "loglikelihood", "generate_until"] = "generate_until"
    doc_to_text: Template
    doc_to_target: Template
    doc_to_choice: Template | None = None
    tag: str | list[str] | None = None
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] = {}
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    fewshot_config: Shots | None = None
    num_fewshot: int = Field(0, ge=0)
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    description: str = ""
    generation_kwargs: Generation = Generation()
    repeats: int = Field(1, ge=1)
    filter_list: list[Filters] = []
    metric_list: list[Metric] = []
    should_decontaminate: bool = False
    doc_to_decontamination_query: str | None = None
    metadata: dict[str, Any] = {}
    stemma: Ours = Ours()

    @property
    def split(self) -> str:
        """The split whose questions are asked."""
        return self.test_split or self.validation_split or self.training_split or "train"

    @property
    def shots_split(self) -> str:
        """The split that solved examples are drawn from; the questions' own where there is no other."""
        return self.fewshot_split or self.training_split or self.validation_split or self.split


def read_task_file(path: Path) -> TaskFile:
    """Read a task file, and what it includes from its own folder.

    Raises:
        InputError: no such file, no plain YAML (Python, as `!function`, is none), or a key that is unknown here.
    """
    source = _source(path)
    source.content = _with_included(path, source.content, {path.resolve()})
    if source.content.get("output_type") == "loglikelihood_rolling":
        raise InputError(f"{path}: loglikelihood_rolling is `stemma evaluate MODEL CORPUS`, without a task")
    try:
        found = TaskFile.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, TaskFile) from error
    if found.output_type == "multiple_choice" and found.doc_to_choice is None:
        raise InputError(f"{path}: doc_to_choice: is missing, expected the choices of a multiple_choice task")
    counted, listed = METRICS[found.output_type], [metric.metric for metric in found.metric_list]
    for name in listed:
        if name not in counted or listed.count(name) > 1:
            often = " twice" if name in counted else ""
            raise InputError(
                f"{path}: metric_list: {name}{often}; of {found.output_type} each of {', '.join(counted)} is counted"
            )
    return found


def _source(path: Path) -> RecipeSource:
    try:
        return RecipeSource(path)
    except OSError as error:
        raise InputError(f"{path}: not a task file that can be read ({error.strerror})") from error


def _with_included(path: Path, content: dict[str, Any], seen: set[Path]) -> dict[str, Any]:
    base = content.pop("include", None)
    if base is None:
        return content
    other = (path.parent / str(base)).resolve()
    if other.parent != path.resolve().parent or other in seen:
        raise InputError(f"{path}: include {base}: expected another file of the same folder")
    return _with_included(other, _source(other).content, seen | {other}) | content
