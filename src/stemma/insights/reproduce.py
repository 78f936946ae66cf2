"""`stemma reproduce`: run a claim's experiment, and say how it came out.

<out>/<claim>/...            the runs, see `experiments`
<out>/<claim>/verdict.json   how it came out
<out>/report.html            a section a claim
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stemma.errors import InputError
from stemma.files import write_whole
from stemma.insights import (
    alignment_beats_size,
    chain_of_thought,
    contextual_beats_lexical,
    contextual_vectors,
    data_efficient,
    distillation_token,
    encoder_decoder_parameters,
    ensemble_in_one,
    facts_in_parameters,
    few_labels,
    glm_competitive,
    glm_positions,
    glm_shuffling,
    in_context,
    kl_reward_frontier,
    lineage,
    missing_digit,
    mixture_of_experts,
    pipeline_order,
    ptx_alignment_tax,
    rolling_cache,
    sliding_window,
    small_student,
    soft_targets,
    specialists,
)
from stemma.insights.arms import ARMS, Scale
from stemma.insights.claims import Claim, Comparison, Decision
from stemma.insights.compare import compare
from stemma.insights.comparison_report import board_of, command_settings, curves_of, table_of
from stemma.insights.experiments import Board, Observer, run_experiment
from stemma.insights.parts import Code, Paragraph, Report, Section, Table, Verdict
from stemma.insights.plan import Plan
from stemma.insights.report import read_report, write_report
from stemma.insights.tables import rows_of

CLAIMS: dict[str, Claim] = {
    module.CLAIM.name: module.CLAIM
    for module in (
        glm_competitive,
        glm_shuffling,
        glm_positions,
        encoder_decoder_parameters,
        facts_in_parameters,
        sliding_window,
        rolling_cache,
        mixture_of_experts,
        lineage,
        contextual_vectors,
        contextual_beats_lexical,
        pipeline_order,
        distillation_token,
        data_efficient,
        alignment_beats_size,
        kl_reward_frontier,
        ptx_alignment_tax,
        in_context,
        chain_of_thought,
        soft_targets,
        missing_digit,
        few_labels,
        ensemble_in_one,
        specialists,
        small_student,
    )
}
VERDICT, REPORT = "verdict.json", "report.html"

# "small": an hour on two cores for five seeds of two frameworks. "paper": GLM-Base's size, for GPUs.
SCALES: dict[str, Scale] = {
    "small": Scale(2, 128, 4, 1024, 3000, 8, 64),
    "medium": Scale(4, 192, 6, 2048, 4000, 16, 128),
    "paper": Scale(12, 768, 12, 30000, 120_000, 256, 256),
}


@dataclass(frozen=True)
class Trial:
    """A claim's experiment, ready to be run: `plan` decides a comparison, `settings` and `seeds` any other; `command`
    runs it again."""

    claim: Claim
    seeds: tuple[int, ...]
    board: Board
    command: str
    plan: Plan | None = None
    settings: Mapping[str, Any] | None = None


def trial_of(claim: Claim, *, seeds: int, scale: str = "small", given: Mapping[str, Any] | None = None) -> Trial:
    """Return the experiment of a claim.

    Args:
        scale: "small", or what else the claim has. given: "steps", "text" and "labels" by the user.
    Raises:
        InputError: fewer than two seeds, or something that the claim's experiment does not have.
    """
    if seeds < 2:
        raise InputError(f"--seeds {seeds}: a claim is decided by differences over seeds, expected 2 or more")
    if (given or {}).get("text") == "-":
        raise InputError("--text -: every training reads the text by itself; expected a file, which they all can")
    numbers, experiment = tuple(range(1, seeds + 1)), claim.experiment
    given = {name: value for name, value in (given or {}).items() if value is not None}
    options = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items()]
    command = " ".join([f"stemma reproduce {claim.name} --seeds {seeds} --scale {scale}", *options])
    if isinstance(experiment, Comparison):
        plan = _plan(claim.name, experiment, numbers, scale, **given)
        return Trial(claim, numbers, board_of(plan), command, plan=plan)
    board = Board("arm", experiment.arms, numbers, experiment.columns)
    return Trial(claim, numbers, board, command, settings=experiment.settings(scale, given))


def _plan(
    claim: str,
    comparison: Comparison,
    seeds: tuple[int, ...],
    scale: str,
    *,
    steps: int | None = None,
    text: str = "python",
    labels: str | None = None,
) -> Plan:
    if scale not in SCALES:
        raise InputError(f"--scale {scale}: expected one of {', '.join(SCALES)}")
    if comparison.labels and labels is None and text != "python":
        raise InputError(f"{claim} is about fine-tuning: expected --labels with --text")
    table = (labels or "python") if comparison.labels else None
    size = SCALES[scale] if steps is None else replace(SCALES[scale], steps=steps)
    return Plan(
        text, "text", "file", table, "text", "label", comparison.arms, seeds, size,
        several_blanks=comparison.several_blanks, long_texts=comparison.long_texts,
    )  # fmt: skip


def reproduce(trial: Trial, out: Path, *, workers: int, observer: Observer | None = None) -> Decision:
    """Run the experiment, or go on with one that is in `out`; write the verdict and its section of the report.

    Raises:
        InputError: see `compare` and `run_experiment`. Interrupted: everything finished so far is kept.
    """
    claim, folder = trial.claim, out / trial.claim.name
    if trial.plan is not None:
        results = compare(trial.plan, folder, workers=workers, observer=observer)
    else:
        experiment: Any = claim.experiment
        settings = trial.settings or {}
        results = run_experiment(experiment, settings, trial.seeds, folder, workers=workers, observer=observer)
    decision = claim.decide(results)
    with write_whole(folder / VERDICT) as temporary:
        content = {"claim": claim.name, **asdict(decision)}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    path = out / REPORT
    lead = "Claims of papers as small controlled experiments. What decides each was written down before it was run."
    before = read_report(path) if path.is_file() else Report("reproduce", lead, ())
    write_report(before.with_section(section_of(trial, decision, results, folder)), path)
    return decision


def section_of(trial: Trial, decision: Decision, results: Mapping[str, Any], folder: Path) -> Section:
    """Return the section of a report about a claim."""
    claim, plan, command = trial.claim, results["plan"], trial.command
    experiment = claim.experiment
    seeds = f"{len(plan['seeds'])} seeds"
    if isinstance(experiment, Comparison):
        extent = f"{seeds}, {Plan.of(plan).scale.tokens:,} tokens of `{plan['text']}` each"
        shown = [table_of(results), curves_of(results), *command_settings(results, folder, command)]
    else:
        extent = seeds
        table = Table(("", *experiment.arms.values()), rows_of(results, experiment.columns))
        settings = Code(json.dumps(plan, indent=2), caption="the settings")
        shown = [table, *experiment.charts(results), Code(command, caption="to run it again"), settings]
    text = "\n\n".join(
        [
            f"Claim: {claim.hypothesis} ({claim.source}).",
            f"Varied: {claim.varied}.",
            f"Held equal: {claim.controlled}. {extent}.",
            f"What decides: {claim.decides}.",
        ]
    )
    rows = list((decision.details or {}).items())
    measured = [Table(("also measured", "value"), rows)] if rows else []
    verdict = Verdict(claim.hypothesis, decision.outcome, decision.effect, decision.premise)
    return Section(claim.name, (Paragraph(text), verdict, *measured, *shown))


def description(claim: Claim) -> str:
    """Return a claim in a few lines, for the terminal."""
    experiment = claim.experiment
    names = {arm: ARMS[arm].label for arm in experiment.arms} if isinstance(experiment, Comparison) else experiment.arms
    lines = (claim.name, claim.hypothesis, claim.source, f"compared: {', '.join(names.values())}")
    return "\n  ".join((*lines, f"decides: {claim.decides}"))
