"""Supervised fine-tuning: learn to say what the assistant says in demonstrations (Ouyang et al. 2022, section 3.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stemma.alignment.conversations import Renderer
from stemma.alignment.dialogues import Dialogue, fingerprint_of, key_of, read_dialogues, read_parts
from stemma.alignment.reading import IGNORED, Batch, CausalReading, Example, Reading, Sample
from stemma.alignment.recipe import SFTRecipe
from stemma.alignment.stage import adapt, describe_model, load_pupil, reached, train, workplace
from stemma.errors import InputError
from stemma.finetuning.in_batches import mean_loss
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.training.objective import Display, Measurement
from stemma.training.progress import Silent
from stemma.training.trainer import Outcome


@dataclass(frozen=True)
class Demonstrations:
    """The mean loss of the tokens that are to be learned, over a whole update: longer responses weigh more."""

    reading: Reading

    def example(self, tokens: Example, rng: np.random.Generator) -> Example:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `Reading.collate`."""
        return self.reading.collate(examples)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many tokens are learned."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the update's loss, and sums to report."""
        counts = self.counts(batch)
        divisor = max((totals or counts)["targets"], 1)
        states = self.reading.states(model, batch)
        loss = linear_cross_entropy(states, model.output_weight, batch["targets"], divisor=divisor)
        return loss, {"nll": loss.detach() * divisor, **counts}


@dataclass(frozen=True)
class Encoded:
    """Examples that can be trained on; how many were cut at their end, and how many of which nothing was left."""

    examples: list[Example]
    cut: int
    dropped: int


def encode(dialogues: Sequence[Dialogue], renderer: Renderer, reading: Reading, loss_on: str = "response") -> Encoded:
    """Return the examples of demonstrations.

    A GPT or Mistral reads a conversation once and learns all that the assistant says in it. T5 and GLM, which write a
    response about what was said before it, learn each time that it speaks from an example of its own.

    Args:
        loss_on: "response", or "all" tokens but the first.
    Raises:
        InputError: nothing to learn; or a family that learns no prompts is to learn all.
    """
    if loss_on == "all" and not isinstance(reading, CausalReading):
        raise InputError("objective.loss_on: only GPT, Mistral and Mixtral learn prompts too; expected response")
    examples: list[Example] = []
    cut = dropped = 0
    for dialogue in dialogues:
        if isinstance(reading, CausalReading):
            tokens, learned = _whole(dialogue, renderer, reading)
            cut += len(tokens) > reading.longest
            tokens, learned = tokens[: reading.longest], learned[: reading.longest]
            chosen = [place for place in range(1, len(tokens)) if learned[place] or loss_on == "all"]
            if chosen and any(learned):
                examples.append(reading.learned(tokens, chosen))
            else:
                dropped += 1
            continue
        for sample in samples_of(dialogue, renderer):
            room = reading.longest - len(sample.prompt)
            cut += len(sample.response) > room
            if room > 0:
                examples.append(reading.frame(Sample(sample.prompt, sample.response[:room])))
            else:
                dropped += 1
    if not examples:
        raise InputError(f"no response begins within the first {reading.longest} tokens (data.longest)")
    return Encoded(examples, cut, dropped)


def samples_of(dialogue: Dialogue, renderer: Renderer) -> list[Sample]:
    """Return each time that the assistant speaks as a sample of its own."""
    if dialogue.messages is not None:
        return renderer.turns(dialogue.messages)
    return [renderer.sample(dialogue.prompt, dialogue.response)]


def _whole(dialogue: Dialogue, renderer: Renderer, reading: CausalReading) -> tuple[list[int], list[bool]]:
    if dialogue.messages is not None:
        return renderer.whole(dialogue.messages)
    sample = renderer.sample(dialogue.prompt, dialogue.response)
    prompt = list(sample.prompt) or [reading.first]
    return [*prompt, *sample.response], [False] * len(prompt) + [True] * len(sample.response)


def tune(
    recipe: SFTRecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> tuple[Outcome, dict[str, Any] | None]:
    """Fine-tune into the directory `out`, or go on where an earlier run of it stopped there.

    The last weights are in `out`, those with the lowest held-out loss in `out`/best.

    Returns:
        how the run ended, and what it reached, as in `out`/results.json (None: interrupted).
    Raises:
        InputError: a model, data or settings that cannot be used.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    shown, data = display or Silent(), recipe.data
    parts = read_parts(data.train, data.dev, lambda path: read_dialogues(path, data), key_of_dialogue)
    with workplace(out, recipe) as workers:
        pupil = load_pupil(recipe, workers.device)
        reading, loss_on = pupil.reading, recipe.objective.loss_on
        learned, held_out = (encode(part, pupil.renderer, reading, loss_on) for part in parts)
        adapt(pupil.model, recipe)
        objective = Demonstrations(reading)

        def measure(model: Any) -> Measurement:
            loss = mean_loss(model, objective, held_out.examples, recipe.training.batch)
            return Measurement(loss, len(held_out.examples), {"perplexity": float(np.exp(min(loss, 700.0)))}, None)

        texts = f"{len(learned.examples):,} to learn from, {len(held_out.examples):,} held out"
        lost = f"; {learned.cut:,} cut to {reading.longest:,} tokens, {learned.dropped:,} left out"
        tokens = sum(int((example["targets"] != IGNORED).sum()) for example in learned.examples)
        outcome = train(
            recipe,
            out,
            pupil,
            pupil.model,
            objective,
            learned.examples,
            [len(example["tokens"]) for example in learned.examples],
            measure=measure,
            fingerprints={"data": fingerprint_of(parts[0])},
            overwrite=overwrite,
            display=shown,
            workers=workers,
            summary=[
                f"data       {data.train}: {texts}{lost if learned.cut or learned.dropped else ''}; "
                f"{tokens:,} tokens are learned ({loss_on})",
                describe_model(recipe, pupil.model),
            ],
        )
        numbers = {"examples": len(learned.examples), "cut": learned.cut, "dropped": learned.dropped}
        held = {"examples": len(held_out.examples)}
        return outcome, reached(out, outcome, held, **numbers, learned_tokens=tokens)


def key_of_dialogue(dialogue: Dialogue) -> str:
    """Return what a dialogue asks, by which held-out ones are told apart."""
    if dialogue.messages is None:
        return key_of(dialogue.prompt)
    return key_of(list(takewhile(lambda message: message["role"] != "assistant", dialogue.messages)))
