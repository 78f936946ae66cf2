"""Do larger models learn more from examples in their prompt? (Brown et al. 2020, section 1, figure 1.2.)"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.evaluation.intervals import over_seeds, paired_over_seeds
from stemma.families.gpt.model import GPT
from stemma.insights.card_tasks import (
    ATTRIBUTES,
    CHANCE,
    CLASSES,
    Documents,
    best_possible,
    divide_tasks,
    draw_documents,
)
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.line_models import TOKENIZER, pretrained, save_tokenizer
from stemma.insights.parts import Curves, Series
from stemma.insights.workers import Report

SHOTS = (0, 1, 2, 4, 8)
CARDS = max(SHOTS) + 1  # of a document
TOKENS = CARDS * (len(ATTRIBUTES) + 1) + 1  # of a document, with the one that separates documents
LARGEST, SMALLEST = "large", "small"
MARGIN = 0.05
_AT_ONCE = 100  # documents
_RATED_HIDDEN = 128  # the rate falls with the width as Adam's best does (Yang et al. 2022)


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Make the tokenizer that all use: a token a word."""
    save_tokenizer([" ".join(words) for words in (*ATTRIBUTES, CLASSES)], shared)


def work(job: Job, report: Report) -> dict[str, Any]:
    """Train a model of the arm's size on documents of some tasks; return how it does others, by the number of shots."""
    settings = job.settings
    learned, unseen = divide_tasks(job.seed)
    length, batch, size = TOKENS * settings["documents_a_sequence"], settings["batch"], settings["sizes"][job.arm]
    count = settings["steps"] * batch * settings["documents_a_sequence"]
    # The documents are the same for all sizes, and none is read twice.
    train = draw_documents(learned, count, CARDS, np.random.default_rng([job.seed, 1]))
    asked = draw_documents(unseen, settings["asked"], CARDS, np.random.default_rng([job.seed, 2]))
    again = draw_documents(learned, settings["asked"], CARDS, np.random.default_rng([job.seed, 3]))
    rate = settings["rate"] * _RATED_HIDDEN / size[1]
    training = {"steps": settings["steps"], "batch": batch, "learning_rate": rate}
    folder = pretrained(job, report, train.lines, asked.lines[:256], size=size, context=length, training=training)
    report((job.name, "asking", 0, 0, {}))
    model: Any = families.load(folder)
    tokenizer = load_tokenizer(job.shared / TOKENIZER)
    return {
        "parameters": sum(parameter.numel() for parameter in model.blocks.parameters()),
        "accuracy": accuracies(model, tokenizer, asked),
        "learned": accuracies(model, tokenizer, again),
        "best": [float(best_possible(asked)[:, shots].mean()) for shots in SHOTS],
    }


def accuracies(model: GPT, tokenizer: Tokenizer, documents: Documents) -> list[float]:
    """Return the share of documents in which the class of the card behind so many shots is the likeliest of the four,
    for each number of `SHOTS`.

    A document read once gives all of them: what a causal model says of a card does not depend on those behind it.
    """
    said = np.concatenate([
        _chosen(model, tokenizer, documents.lines[start : start + _AT_ONCE])
        for start in range(0, len(documents.cards), _AT_ONCE)
    ])  # fmt: skip
    right = said == documents.classes  # [documents, cards]
    return [float(right[:, shots].mean()) for shots in SHOTS]


@torch.inference_mode()
def _chosen(model: GPT, tokenizer: Tokenizer, lines: Sequence[str]) -> np.ndarray:
    tokens = torch.tensor([[tokenizer.separator, *row] for row in tokenizer.encode_batch(lines)])
    classes = [row[0] for row in tokenizer.encode_batch(CLASSES)]
    cards = slice(len(ATTRIBUTES), None, len(ATTRIBUTES) + 1)  # where a card ends and its class comes next
    chosen: np.ndarray = model(tokens[:, :-1])[:, cards, classes].argmax(-1).numpy()
    return chosen


def slope(accuracy: Sequence[float]) -> float:
    """Return how much accuracy rises by with each doubling of 1 + shots: the least-squares line over `SHOTS`."""
    return float(np.polyfit(np.log2([1 + shots for shots in SHOTS]), accuracy, 1)[0])


def _slope(measures: Measures) -> float:
    return slope(measures["accuracy"])


def _last(measures: Measures) -> float:
    return float(measures["accuracy"][-1])


def decide(results: Results) -> Decision:
    """Decide by the slopes over the shots: the largest model's against the smallest's, and the largest's alone."""
    slopes = {arm: values(results, arm, _slope) for arm in EXPERIMENT.arms}
    largest = over_seeds(slopes[LARGEST])
    effect = paired_over_seeds(slopes[LARGEST], slopes[SMALLEST])
    details = {f"slope of {label}": over_seeds(slopes[arm]) for arm, label in EXPERIMENT.arms.items()} | {
        "accuracy with 8 shots, largest minus smallest": paired_over_seeds(
            values(results, LARGEST, _last), values(results, SMALLEST, _last)
        ),
        "slope of the best possible": over_seeds(values(results, LARGEST, lambda m: slope(m["best"]))),
    }
    without = over_seeds(values(results, LARGEST, lambda m: float(m["accuracy"][0])))
    learned = over_seeds(values(results, LARGEST, lambda m: float(m["learned"][-1])))
    if without.low > CHANCE + MARGIN:
        return Decision("undecided", effect, "the tasks are done without examples", details)
    if learned.low <= CHANCE + MARGIN:
        return Decision("undecided", effect, "the largest model did not learn its own tasks", details)
    outcome, _ = by_all([effect, largest])
    return Decision(outcome, effect, details=details)


def charts(results: Results) -> Sequence[Curves]:
    """Return accuracy against shots, a line a size, and the best that is possible."""
    lines = [_line(results, arm, label, "accuracy") for arm, label in EXPERIMENT.arms.items()]
    best = _line(results, LARGEST, "the best possible", "best")
    caption = (
        f"Accuracy on tasks that were never trained, by the number of examples in the prompt; chance {CHANCE}. The "
        "best possible: of one who knows the family, and the task by the examples alone."
    )
    return [Curves([*lines, best], "1 + shots", "accuracy", caption, log_x=True)]


def _line(results: Results, arm: str, label: str, name: str) -> Series:
    points = [
        over_seeds(values(results, arm, lambda m, place=place: float(m[name][place])))  # type: ignore[misc]
        for place in range(len(SHOTS))
    ]
    low, high = [point.low for point in points], [point.high for point in points]
    return Series(label, [1 + shots for shots in SHOTS], [point.estimate for point in points], low, high)


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"sizes": {SMALLEST: [2, 48, 2], "middle": [3, 72, 3], LARGEST: [4, 144, 6]}},
        **{"steps": 2000, "batch": 4, "documents_a_sequence": 8, "rate": 2e-3, "asked": 2000},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={SMALLEST: "the smallest GPT", "middle": "the middle GPT", LARGEST: "the largest GPT"},
    scales={
        "small": _settings(),
        "medium": _settings(
            sizes={SMALLEST: [2, 64, 4], "middle": [4, 128, 4], LARGEST: [8, 256, 8]}, steps=20_000, batch=16
        ),
    },
    work=work,
    prepare=prepare,
    columns=(
        *(
            Column(f"accuracy with {shots} shots", f"{shots} shots", lambda m, place=place: m["accuracy"][place])  # type: ignore[misc]
            for place, shots in enumerate(SHOTS)
        ),
        Column("rise with each doubling of 1 + shots", "slope", _slope),
        Column("accuracy with 8 shots, tasks that were trained", "trained", lambda m: m["learned"][-1]),
        Column("parameters beside embeddings", "", lambda m: m["parameters"], more=False),
    ),
    charts=charts,
)

CLAIM = Claim(
    name="in-context",
    source="Brown et al. 2020, section 1, figure 1.2",
    hypothesis="a model does a task that it was never trained for by examples in its prompt, the better the more there "
    "are, and larger models gain more by them",
    varied="the size of the model (parameters beside embeddings: about 0.06, 0.19 and 1 million), and the number of "
    "shots",
    controlled="documents and their order, each read once; tokenizer, batch, updates, the rule for the rate (it falls "
    "with the width); the tasks asked, a quarter of the family, of which no example was trained; seeds",
    decides=f"rise of accuracy with each doubling of 1 + shots (least squares over {', '.join(map(str, SHOTS))} shots) "
    "on tasks never trained: largest minus smallest model; reproduced if its interval and that of the largest's own "
    "rise lie above 0, not reproduced if one of them lies below; undecided if the largest does the tasks without "
    f"examples, or those it was trained on with 8 examples no better than chance (by {MARGIN})",
    decide=decide,
    experiment=EXPERIMENT,
)
