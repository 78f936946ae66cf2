"""The results of `compare` as a table and a page."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stemma.insights.arms import ARMS
from stemma.insights.compare import REPORT, recipes
from stemma.insights.experiments import Board, Column
from stemma.insights.parts import Bars, Code, Curves, Paragraph, Samples, Series, Table
from stemma.insights.plan import Plan
from stemma.insights.report import Report, Section, write_report
from stemma.insights.tables import average, rows_of

MEASURES: tuple[Column, ...] = (
    Column("accuracy, fine-tuned", "class", lambda m: m.get("finetuned", {}).get("test")),
    Column("... from random weights", "", lambda m: m.get("from-random", {}).get("test")),
    Column("right piece of four", "choice", lambda m: m["choice"]),
    Column("blanks: nats a token", "nats", lambda m: m["blank_nll"], more=False),
    Column("blanks: exact match", "", lambda m: m["exact_match"]),
    Column("blanks: ROUGE-L", "", lambda m: m["rouge_l"]),
    Column("bits per byte", "bits", lambda m: m["bits_per_byte"], more=False),
)
_BLANKS = ("blanks: nats a token", "blanks: exact match", "blanks: ROUGE-L")

# What a family cannot do by design, and what was done instead.
_GPT_BLANK = "not by design: a GPT sees only what is before a blank and was told how many tokens to write"
_BERT_BLANK = "not by design: it was told how many tokens were taken out, and fills them from left to right"
NOTES: dict[tuple[str, str], str] = {
    **{("gpt", name): _GPT_BLANK for name in _BLANKS},
    **{(family, name): _BERT_BLANK for family in ("bert", "unilm") for name in _BLANKS},
    ("bert", "bits per byte"): "not by design: pseudo-log-likelihood, each token given all others, "
    "which is no probability of the text and cannot be compared",
    ("t5", "bits per byte"): "not by design: the text as the filling of one gap, which span corruption does not train",
    ("gpt", "right piece of four"): "by the likelihood of the piece and all that follows it",
}
# Cells that are not in the running for the best of their column.
_OUT_OF_RUNNING = {("bert", "bits per byte")} | {
    (family, name) for family in ("gpt", "bert", "unilm") for name in _BLANKS
}


def table_of(results: Mapping[str, Any]) -> Table:
    """Return a column for each framework: its parameters and the mean of each measure over the seeds, with its
    interval."""
    arms = list(results["plan"]["arms"])
    rows = rows_of(
        results,
        MEASURES,
        note=lambda arm, title: NOTES.get((ARMS[arm].family, title), ""),
        running=lambda arm, title: (ARMS[arm].family, title) not in _OUT_OF_RUNNING,
    )
    parameters = ("parameters", *(f"{results['parameters'][arm]:,}" for arm in arms))
    return Table(("", *(ARMS[arm].label for arm in arms)), (parameters, *rows), notes=_remarks(results))


def board_of(plan: Plan) -> Board:
    """Return what a display shows of a comparison."""
    caption = (
        "class: accuracy after fine-tuning; choice: one of four pieces; nats: per token of a blank; bits: per byte"
    )
    return Board("framework", {arm: ARMS[arm].label for arm in plan.arms}, plan.seeds, MEASURES, caption)


def write_comparison(results: Mapping[str, Any], out: Path) -> Path:
    """Write `out`/report.html; return its path."""
    write_report(Report("compare", _lead(results), _sections(results, out)), out / REPORT)
    return out / REPORT


def _sections(results: Mapping[str, Any], out: Path) -> tuple[Section, ...]:
    table = table_of(results)
    parts = [
        Section("Results", (table,)),
        Section("Bars", tuple(_bars(results))),
        Section("Training", (curves_of(results), Paragraph(_CURVES))),
        Section("The same blanks, filled by each", (_samples(results),)),
        Section("The same beginning, continued", (_continuations(results),)),
        Section("Settings", tuple(command_settings(results, out, command_of(Plan.of(results["plan"]))))),
    ]
    return tuple(parts)


_CURVES = (
    "Each curve is the training loss of a framework's own objective, in nats per predicted token: curves of different "
    "frameworks predict different things and do not compare."
)


def _lead(results: Mapping[str, Any]) -> str:
    plan, scale = results["plan"], results["plan"]["scale"]
    tokens = scale["steps"] * scale["batch"] * scale["length"]
    sizes = [results["parameters"][arm] for arm in plan["arms"] if ARMS[arm].size == 1.0]
    spread = (max(sizes) / min(sizes) - 1) * 100 if sizes else 0.0
    return (
        f"{len(plan['arms'])} frameworks, each trained from random weights on the same {tokens:,} tokens of "
        f"`{plan['text']}` with the same tokenizer, in the same order, {len(plan['seeds'])} times with another seed. "
        f"Their numbers of parameters differ by {spread:.1f} %, but where a name says otherwise. All numbers are of "
        "held-out text; intervals are Student's t at 95 % over the seeds."
    )


def _remarks(results: Mapping[str, Any]) -> tuple[str, ...]:
    majority = [m["finetuned"]["majority"] for m in results["measures"].values() if "finetuned" in m]
    remarks = [] if not majority else [f"always the most frequent class: {majority[0]:.3f}"]
    remarks.append("right piece of four: 0.25 by chance")
    remarks += [f"{ARMS[arm].label}: {ARMS[arm].note}" for arm in results["plan"]["arms"] if ARMS[arm].note]
    return tuple(remarks)


def _bars(results: Mapping[str, Any]) -> list[Bars]:
    arms = results["plan"]["arms"]
    labels = [ARMS[arm].label for arm in arms]
    charts = []
    for column in MEASURES:
        # A pseudo-likelihood is no probability of the text: as a bar beside probabilities it would mislead.
        shown = [
            None if ARMS[arm].family == "bert" and column.title == "bits per byte" else average(results, arm, column)
            for arm in arms
        ]
        if any(value is not None for value in shown):
            left_out = column.title == "bits per byte" and None in shown
            caption = f"{column.title}; of a BERT there are none, see the table" if left_out else column.title
            charts.append(Bars((column.title,), tuple(labels), (tuple(shown),), caption=caption))
    return charts


def curves_of(results: Mapping[str, Any]) -> Curves:
    """Return the losses of the pretraining runs."""
    series = []
    for arm in results["plan"]["arms"]:
        curves = [results["curves"][f"{arm}-{seed}"] for seed in results["plan"]["seeds"]]
        losses = np.array([curve["loss"] for curve in curves])
        low, high = (losses.min(0), losses.max(0)) if len(curves) > 1 else (None, None)
        series.append(Series(ARMS[arm].label, curves[0]["tokens"], losses.mean(0), low=low, high=high))
    caption = "mean over the seeds, with their range"
    return Curves(tuple(series), x_label="tokens of text", y_label="nats per predicted token", caption=caption)


def _samples(results: Mapping[str, Any]) -> Samples:
    plan = results["plan"]
    seed = plan["seeds"][0]
    first = results["measures"][f"{plan['arms'][0]}-{seed}"]["samples"]
    shown = []
    for number, sample in enumerate(first):
        answers = [("what stood there", sample["piece"])]
        for arm in plan["arms"]:
            written = results["measures"][f"{arm}-{seed}"]["samples"][number]["written"]
            answers.append((ARMS[arm].label, written))
        shown.append((f"blank {number + 1}", f"{sample['before']}[MASK]{sample['after']}", tuple(answers)))
    return Samples(tuple(shown), caption=f"seed {seed}; the likeliest token each time")


def _continuations(results: Mapping[str, Any]) -> Samples:
    plan, prompt, texts = results["plan"], "", []
    for arm in plan["arms"]:
        written = results["measures"][f"{arm}-{plan['seeds'][0]}"].get("continuation")
        prompt = written["prompt"] if written else prompt
        texts.append((ARMS[arm].label, written["text"] if written else " (does not write from left to right)"))
    return Samples((("beginning", prompt, tuple(texts)),), caption="temperature 0.8")


def command_settings(results: Mapping[str, Any], out: Path, command: str) -> list[Any]:
    """Return the command that makes it again, and all settings."""
    plan = Plan.of(results["plan"])
    parts: list[Any] = [Code(command, caption="to run it again")]
    for (arm, seed), recipe in recipes(plan, out).items():
        if seed == plan.seeds[0]:
            text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            parts.append(Code(text, caption=f"{ARMS[arm].label}: recipe of the pretraining, seed {seed}"))
    parts.append(Code(json.dumps(results["plan"], indent=2), caption="the plan"))
    return parts


def command_of(plan: Plan) -> str:
    """Return the command that makes the comparison again."""
    words = ["stemma", "compare", "--text", plan.text, "--field", plan.field, "--documents", plan.documents]
    if plan.labels not in (None, "python"):
        words += ["--labels", str(plan.labels), "--label-text", plan.label_text, "--label-column", plan.label_column]
    words += ["--frameworks", ",".join(plan.arms), "--seeds", str(len(plan.seeds)), "--steps", str(plan.scale.steps)]
    return shlex.join([*words, "--budget", f"{plan.minutes:g}"])
