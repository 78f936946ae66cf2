"""`stemma reproduce`: run a claim's experiment, and say how it came out.

<out>/<claim>/...            the runs, as `compare` lays them out
<out>/<claim>/verdict.json   how it came out
<out>/report.html            a section a claim
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stemma.errors import InputError
from stemma.files import write_whole
from stemma.insights import (
    encoder_decoder_parameters,
    glm_competitive,
    glm_positions,
    glm_shuffling,
    mixture_of_experts,
    rolling_cache,
    sliding_window,
)
from stemma.insights.arms import ARMS, Scale
from stemma.insights.claims import Claim, Decision
from stemma.insights.compare import Observer, compare
from stemma.insights.comparison_report import command_settings, curves_of, table_of
from stemma.insights.parts import Paragraph, Report, Section, Table, Verdict
from stemma.insights.plan import Plan
from stemma.insights.report import read_report, write_report

CLAIMS: dict[str, Claim] = {
    module.CLAIM.name: module.CLAIM
    for module in (
        glm_competitive,
        glm_shuffling,
        glm_positions,
        encoder_decoder_parameters,
        sliding_window,
        rolling_cache,
        mixture_of_experts,
    )
}
VERDICT, REPORT = "verdict.json", "report.html"

# "small": an hour on two cores for five seeds of two frameworks. "paper": GLM-Base's size, for GPUs.
SCALES: dict[str, Scale] = {
    "small": Scale(2, 128, 4, 1024, 3000, 8, 64),
    "medium": Scale(4, 192, 6, 2048, 4000, 16, 128),
    "paper": Scale(12, 768, 12, 30000, 120_000, 256, 256),
}


def plan_of(claim: Claim, *, seeds: int, scale: Scale, text: str = "python", labels: str | None = None) -> Plan:
    """Return the plan of a claim's experiment.

    Raises:
        InputError: fewer than two seeds, or a claim about fine-tuning without labels for a text of one's own.
    """
    if seeds < 2:
        raise InputError(f"--seeds {seeds}: a claim is decided by differences over seeds, expected 2 or more")
    if claim.labels and labels is None and text != "python":
        raise InputError(f"{claim.name} is about fine-tuning: expected --labels with --text")
    table = (labels or "python") if claim.labels else None
    numbers = tuple(range(1, seeds + 1))
    return Plan(
        text, "text", "file", table, "text", "label", claim.arms, numbers, scale,
        several_blanks=claim.several_blanks, long_texts=claim.long_texts,
    )  # fmt: skip


def reproduce(claim: Claim, plan: Plan, out: Path, *, workers: int, observer: Observer | None = None) -> Decision:
    """Run the experiment, or go on with one that is in `out`; write the verdict and its section of the report.

    Raises:
        InputError: see `compare`. Interrupted: everything finished so far is kept.
    """
    folder = out / claim.name
    results = compare(plan, folder, workers=workers, observer=observer)
    decision = claim.decide(results)
    with write_whole(folder / VERDICT) as temporary:
        content = {"claim": claim.name, **asdict(decision)}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _add_section(claim, decision, results, out, folder)
    return decision


def _add_section(claim: Claim, decision: Decision, results: Mapping[str, Any], out: Path, folder: Path) -> None:
    path = out / REPORT
    lead = "Claims of papers as small controlled experiments. What decides each was written down before it was run."
    before = read_report(path) if path.is_file() else Report("reproduce", lead, ())
    write_report(before.with_section(section_of(claim, decision, results, folder)), path)


def section_of(claim: Claim, decision: Decision, results: Mapping[str, Any], folder: Path) -> Section:
    """Return the section of a report about a claim."""
    plan = results["plan"]
    tokens = Plan.of(plan).scale.tokens
    text = "\n\n".join(
        [
            f"Claim: {claim.hypothesis} ({claim.source}).",
            f"Varied: {claim.varied}.",
            f"Held equal: {claim.controlled}. {len(plan['seeds'])} seeds, {tokens:,} tokens of `{plan['text']}` each.",
            f"What decides: {claim.decides}.",
        ]
    )
    rows = [(name, interval) for name, interval in (decision.details or {}).items()]
    verdict = Verdict(claim.hypothesis, decision.outcome, decision.effect, decision.premise)
    parts: list[Any] = [Paragraph(text), verdict]
    if rows:
        parts.append(Table(("also measured", "difference"), tuple(rows)))
    parts += [
        table_of(results),
        curves_of(results),
        *command_settings(results, folder, f"stemma reproduce {claim.name}"),
    ]
    return Section(claim.name, tuple(parts))


def description(claim: Claim) -> str:
    """Return a claim in a few lines, for the terminal."""
    arms = ", ".join(ARMS[arm].label for arm in claim.arms)
    return f"{claim.name}\n  {claim.hypothesis}\n  {claim.source}\n  frameworks: {arms}\n  decides: {claim.decides}"
