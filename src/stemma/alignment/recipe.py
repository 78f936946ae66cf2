"""What decides a run of supervised fine-tuning, of a reward model or of DPO."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from stemma.finetuning.recipe import LoRARecipe
from stemma.training.recipe import RunRecipe, Section
from stemma.training.recipe_source import RecipeSource, find_recipe

# Sections that decide the resulting weights.
DECISIVE = ("model", "lora", "dropout", "data", "objective", "training", "seed")
# Smaller models want larger rates: the recipe "-tiny" is theirs.
SMALL_MODEL = 30_000_000


class DialogueRecipe(Section):
    """Demonstrations (see `dialogues.read_dialogues`).

    Args:
        train: a file, a folder or a data set. dev: another, or the share of `train` that is held out.
        prompt, response: columns. messages: column with a whole conversation, where there is one.
        template: file of a chat template; default: the model's own, else `conversations.DEFAULT_TEMPLATE`.
        longest: most tokens of a conversation; what is behind is cut off.
        packing: several conversations share a row of the batch; without, they are sorted by length.
    """

    train: str
    dev: str | float = 0.05
    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    template: str | None = None
    longest: int = Field(default=1024, gt=4)
    packing: bool = True


class ComparisonRecipe(Section):
    """Comparisons (see `comparisons.read_comparisons`).

    Args:
        train: a file, a folder or a data set. dev: another, or the share of the prompts of `train` that is held out.
        prompt, chosen, rejected: columns of pairs. responses, ranks: columns of rankings, the best rank lowest.
        template: see `DialogueRecipe`. longest: comparisons with more tokens a text are left out.
        packing: several texts share a row of the batch.
    """

    train: str
    dev: str | float = 0.05
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: str = "responses"
    ranks: str = "ranks"
    template: str | None = None
    longest: int = Field(default=1024, gt=4)
    packing: bool = True


class StageRecipe(RunRecipe):
    """What the stages share.

    Args:
        model: checkpoint directory or hub id. lora: train adapters, which are then merged; null: all weights.
        dropout: of the model's residual stream, its attention weights have none; null: as its configuration says.
    """

    model: str
    lora: LoRARecipe | None = None
    dropout: float | None = Field(default=0.0, ge=0, lt=1)


class SFTObjective(Section):
    """loss_on: "response" (the assistant's words and their end) or "all" tokens."""

    loss_on: Literal["response", "all"] = "response"


class SFTRecipe(StageRecipe):
    """Supervised fine-tuning."""

    data: DialogueRecipe
    objective: SFTObjective = SFTObjective()


class RewardObjective(Section):
    """demonstrations: file of dialogues whose mean reward is made 0; default: the best responses of the training set.
    centred_on: most of them that are scored for that."""

    demonstrations: str | None = None
    centred_on: int = Field(default=256, gt=0)


class RewardRecipe(StageRecipe):
    """A reward model."""

    data: ComparisonRecipe
    objective: RewardObjective = RewardObjective()


class DPOObjective(Section):
    """See `dpo.dpo_loss`.

    Args:
        beta: how much the policy is held to the reference. loss: "sigmoid" (DPO) or "ipo".
        label_smoothing: share of the labels that are taken to be wrong.
    """

    beta: float = Field(default=0.1, gt=0)
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


class DPORecipe(StageRecipe):
    """Direct preference optimisation."""

    data: ComparisonRecipe
    objective: DPOObjective = DPOObjective()


Stage = TypeVar("Stage", bound=RunRecipe)


def build_recipe(
    stage: type[Stage], name_or_path: str | Path, given: Mapping[str, Any], overrides: Iterable[str] = ()
) -> Stage:
    """Return a recipe with what is given instead.

    Args:
        given: keys of the recipe, and of its sections; None: not given. overrides: `section.key=value`.
    Raises:
        InputError: no such recipe, an unknown key or a bad value; names the place.
    """
    source = RecipeSource(find_recipe(name_or_path))
    for key, value in given.items():
        if isinstance(value, Mapping):
            section = source.content.setdefault(key, {})
            section.update({name: entry for name, entry in value.items() if entry is not None})
        elif value is not None:
            source.content[key] = value
    for override in overrides:
        source.override(override)
    return _validated(stage, source)


def read_recipe(stage: type[Stage], path: Path) -> Stage:
    """Read the recipe of an earlier run.

    Raises:
        InputError: it is none of this stage.
    """
    return _validated(stage, RecipeSource(path))


def _validated(stage: type[Stage], source: RecipeSource) -> Stage:
    try:
        return stage.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, stage) from error
