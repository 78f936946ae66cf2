"""Training a reward model on comparisons of responses (Ouyang et al. 2022, section 3.5 and appendix C.2)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stemma.alignment import ranking
from stemma.alignment.comparisons import Comparison, Comparisons, read_splits
from stemma.alignment.dialogues import fingerprint_of, read_dialogues
from stemma.alignment.ranking import Ranking
from stemma.alignment.reading import Sample
from stemma.alignment.recipe import DialogueRecipe, RewardRecipe
from stemma.alignment.reward_model import RewardModel, load_reward_model
from stemma.alignment.reward_report import RewardReport, report
from stemma.alignment.stage import Pupil, adapt, describe_model, load_pupil, train, workplace, write_results
from stemma.errors import InputError
from stemma.families.growth import with_vocabulary
from stemma.finetuning.in_batches import in_batches
from stemma.training.objective import Display, Measurement
from stemma.training.progress import Silent
from stemma.training.trainer import Outcome

PADDING = "<|pad|>"


def train_reward_model(
    recipe: RewardRecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> tuple[Outcome, RewardReport | None]:
    """Train a reward model into the directory `out`, or go on where an earlier run of it stopped there.

    Wherever it is written, its mean reward of the demonstrations is 0.

    Returns:
        how the run ended, and what the last weights reach on the held-out comparisons, as in `out`/results.json (None:
        interrupted).
    Raises:
        InputError: a model, data or settings that cannot be used.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    shown, data = display or Silent(), recipe.data
    given, held = read_splits(data)
    with workplace(out, recipe) as workers:
        pupil = _with_padding(load_pupil(recipe, workers.device))
        model = RewardModel(pupil.model, pupil.reading).to(workers.device)
        adapt(model, recipe, trainable=["head"])
        objective = Ranking(pupil.reading)
        learned, comparisons, long = ranking.encode(given.prompts, pupil.renderer, pupil.reading)
        held_out, judged, _ = ranking.encode(held, pupil.renderer, pupil.reading)
        # A library that is missing is not found out after an epoch.
        report(judged[:1], [[0.0] * len(judged[0].responses)])
        demonstrations = _demonstrations(recipe, pupil, comparisons)

        def measure(model: Any) -> Measurement:
            rewards = rewards_of(model, objective, held_out, recipe.training.batch)
            found = report(judged, [scores.tolist() for scores in rewards])
            loss = ranking.ranking_loss(torch.cat(rewards), *ranking.numbered_pairs(held_out)) / len(held_out)
            numbers = {"accuracy": found.accuracy.estimate, "length_correlation": found.length_correlation}
            return Measurement(float(loss), len(held_out), numbers, None)

        def save(model: RewardModel, directory: Path) -> None:
            centre = float(model.score(demonstrations).mean())
            model.save(pupil.tokenizer, directory, centre=centre)
            if (template := pupil.renderer.used_template) is not None:
                template.save(directory)

        outcome = train(
            recipe,
            out,
            pupil,
            model,
            objective,
            learned,
            [len(example["tokens"]) for example in learned],
            measure=measure,
            save=save,
            fingerprints={"data": fingerprint_of(given.prompts)},
            overwrite=overwrite,
            display=shown,
            workers=workers,
            summary=[
                *describe_comparisons(data.train, comparisons, judged, given, long),
                describe_model(recipe, model),
            ],
        )
        if outcome.reason == "interrupted":
            return outcome, None
        final, _ = load_reward_model(out, device=workers.device)
        rewards = rewards_of(final, objective, held_out, recipe.training.batch)
        found = report(judged, [scores.tolist() for scores in rewards])
        write_results(out, {"steps": outcome.progress.step, "held_out": found.as_dict()})
        return outcome, found


def rewards_of(model: RewardModel, objective: Ranking, examples: Sequence[Any], batch: int) -> list[torch.Tensor]:
    """Return the rewards of each example's responses, float32 [responses] on the CPU, by a model in eval mode."""

    def run(collated: Any) -> Sequence[torch.Tensor]:
        return model(collated).cpu().split(collated["prompts"].tolist())

    return in_batches(model, objective, examples, run, batch)


def describe_comparisons(
    path: str, learned: Sequence[Comparison], judged: Sequence[Comparison], file: Comparisons, long: int
) -> list[str]:
    """Return lines that say what is compared, and what is not."""
    pairs = [sum(len(comparison.pairs) for comparison in part) for part in (learned, judged)]
    lines = [
        f"data       {path}: {pairs[0]:,} pairs of {len(learned):,} prompts to learn from, {pairs[1]:,} of "
        f"{len(judged):,} held out"
    ]
    reasons = {
        "of the same rank or alike": file.ties,
        "about different prompts": file.apart,
        "too long (data.longest)": long,
    }
    found = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
    return [*lines, *(["left out   " + ", ".join(found)] if found else [])]


def _demonstrations(recipe: RewardRecipe, pupil: Pupil, comparisons: Sequence[Comparison]) -> list[Sample]:
    """Return what is to have a mean reward of 0, spread evenly over the recipe's file or the training set."""
    file, most = recipe.objective.demonstrations, recipe.objective.centred_on
    if file is None:
        found = [(comparison.prompt, comparison.responses[_best(comparison)]) for comparison in comparisons]
        samples = [pupil.renderer.sample(*one) for one in _spread(found, most)]
    else:
        samples = []
        for dialogue in _spread(read_dialogues(file, DialogueRecipe(train=file)), most):
            if dialogue.messages is None:
                samples.append(pupil.renderer.sample(dialogue.prompt, dialogue.response))
            else:
                samples.append(pupil.renderer.turns(dialogue.messages)[-1])
    fitting = [sample for sample in samples if len(sample) < pupil.reading.longest]
    if not fitting:
        raise InputError(f"{file}: no demonstration fits into {pupil.reading.longest} tokens (data.longest)")
    return fitting


def _best(comparison: Comparison) -> int:
    """Return a response that is worse than no other one, if there is any."""
    beaten = {worse for _, worse in comparison.pairs}
    return next((better for better, _ in comparison.pairs if better not in beaten), comparison.pairs[0][0])


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _with_padding(pupil: Pupil) -> Pupil:
    """Return a pupil whose tokenizer has a token for padding that is not the end: transformers' classes for rewards
    find the last token of a text by it."""
    if pupil.renderer.separate or pupil.tokenizer.pad not in (None, pupil.reading.end):
        return pupil
    tokenizer = pupil.tokenizer.with_special_tokens(pad_token=PADDING)
    return replace(pupil, model=with_vocabulary(pupil.model, tokenizer.vocabulary), tokenizer=tokenizer)
