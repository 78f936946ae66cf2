"""All of InstructGPT in one go: demonstrations, then comparisons, then PPO (Ouyang et al. 2022, figure 2).

<out>/data/     the docstring task, where no data is given
<out>/sft/      a checkpoint directory that answers as demonstrated
<out>/reward/   the reward model
<out>/ppo/      a checkpoint directory that answers as is preferred: the result
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stemma.alignment.comparisons import read_splits
from stemma.alignment.docstring_data import COMPARISONS, HELD_OUT, TRAIN, write_comparisons, write_task
from stemma.alignment.prompts import read_both
from stemma.alignment.recipe import RewardRecipe, SFTRecipe
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement import Ended
from stemma.alignment.reinforcement_recipe import PPORecipe
from stemma.alignment.reward import train_reward_model
from stemma.alignment.reward_report import RewardReport
from stemma.alignment.sft import tune
from stemma.errors import InputError
from stemma.training.objective import Display
from stemma.training.progress import Silent
from stemma.training.recipe import Section
from stemma.training.recipe_source import RecipeSource, find_recipe

DATA, SFT, REWARD, PPO = "data", "sft", "reward", "ppo"
_DATA = (("sft", "data"), ("reward", "data"), ("ppo", "prompts"))  # where each step's recipe names it
SAMPLES = 4  # responses to a prompt that are compared (Ouyang et al. 2022, section 3.4: 4 to 9)


class InstructRecipe(Section):
    """The three steps, each as its own command takes it; `instruct_recipe` fills in what one takes from another."""

    sft: SFTRecipe
    reward: RewardRecipe
    ppo: PPORecipe


@dataclass(frozen=True)
class Aligned:
    """What the steps came to (None: it was interrupted before), and the signal that interrupted it, if one did."""

    sft: dict[str, Any] | None = None
    reward: RewardReport | None = None
    ppo: Ended | None = None
    signal: int | None = None


def instruct_recipe(
    name_or_path: str | Path,
    model: str,
    out: Path,
    *,
    demonstrations: str | None = None,
    comparisons: str | None = None,
    prompts: str | None = None,
    overrides: Iterable[str] = (),
) -> InstructRecipe:
    """Return the recipe of all three steps in the directory `out`.

    Args:
        model: the pretrained one. demonstrations, comparisons, prompts: data of the steps; without any: the docstring
            task, whose comparisons are made on the way. Prompts are those of the demonstrations unless given.
        overrides: `step.section.key=value`.
    Raises:
        InputError: no such recipe, an unknown key or a bad value, or data for only one of the first two steps.
    """
    source = RecipeSource(find_recipe(name_or_path))
    for override in overrides:
        source.override(override)
    task = out / DATA
    _fill(source, ("sft", "model"), model)
    _fill(source, ("sft", "data", "train"), demonstrations)
    _fill(source, ("reward", "data", "train"), comparisons)
    _fill(source, ("ppo", "prompts", "source"), prompts)
    sft, reward, asked = (source.content[step][part] for step, part in _DATA)
    if "train" not in sft and "train" not in reward:
        sft["train"], reward["train"] = str(task / TRAIN), str(task / COMPARISONS)
        sft.setdefault("dev", str(task / HELD_OUT))
        if "source" not in asked:
            asked.setdefault("held_out", str(task / HELD_OUT))
    elif "train" not in sft or "train" not in reward:
        missing = "comparisons" if "train" in sft else "demonstrations"
        raise InputError(f"{missing}: missing; expected demonstrations and comparisons, or neither (a task is made)")
    _fill(source, ("ppo", "prompts", "source"), sft["train"])
    for step in ("reward", "ppo"):
        _fill(source, (step, "model"), str(out / SFT))
    _fill(source, ("ppo", "reward", "source"), str(out / REWARD))
    try:
        return InstructRecipe.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, InstructRecipe) from error


def _fill(source: RecipeSource, keys: tuple[str, ...], value: str | None) -> None:
    """Set a key that has no value yet."""
    section = source.content
    for key in keys[:-1]:
        if section.setdefault(key, {}) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise InputError(f"{source.where(keys[: keys.index(key) + 1])}: expected a section")
    if section.get(keys[-1]) is None and value is not None:
        section[keys[-1]] = value


def align_all(
    recipe: InstructRecipe,
    out: Path,
    *,
    until: Literal["reward", "ppo"] = "ppo",
    overwrite: bool = False,
    display: Display | None = None,
    curves: Display | None = None,
) -> Aligned:
    """Go all three steps in the directory `out`, or go on where an earlier run stopped there.

    Args:
        until: the last step. curves: shows the third step; default: `display`.
    Raises:
        InputError: a model, data or settings that cannot be used, or a directory of another run.
        Diverged, RunAway: a step went wrong. OSError: a checkpoint could not be written.
    """
    shown = display or Silent()
    task = out / DATA
    if overwrite:
        shutil.rmtree(task, ignore_errors=True)
    made = Path(recipe.sft.data.train) == task / TRAIN
    if made and not (task / HELD_OUT).is_file():
        task.mkdir(parents=True, exist_ok=True)
        write_task(task, chat=True)
    # What the later steps cannot read is not found out after the first one.
    read_both(recipe.ppo.prompts.source, recipe.ppo.prompts.held_out)
    if not made:
        read_splits(recipe.reward.data)
    shown.say(f"1/3        demonstrations: {out / SFT}")
    outcome, found = tune(recipe.sft, out / SFT, overwrite=overwrite, display=shown)
    if found is None:
        return Aligned(signal=outcome.signal)
    if made and not (task / COMPARISONS).is_file():
        with shown.preparing() as report:
            write_comparisons(
                task,
                str(out / SFT),
                samples=SAMPLES,
                seed=recipe.reward.seed,
                longest=recipe.ppo.rollout.longest,
                report=lambda done, total: report("responses to compare", done, total),
            )
    shown.say(f"2/3        comparisons: {out / REWARD}")
    outcome, judged = train_reward_model(recipe.reward, out / REWARD, overwrite=overwrite, display=shown)
    if judged is None or until == "reward":
        return Aligned(found, judged, signal=outcome.signal)
    shown.say(f"3/3        PPO: {out / PPO}")
    ended = reinforce(recipe.ppo, out / PPO, overwrite=overwrite, display=curves or shown)
    return Aligned(found, judged, ended, ended.signal)
