"""`stemma reproduce`: a paper's claim as a small controlled experiment."""

import json
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(metavar="[CLAIM ...]", help="Names of claims; none: list them.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Repetitions; the interval over them decides.")] = 5,
    scale: Annotated[str, typer.Option(help="small (two cores), medium or paper (GPUs).")] = "small",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of pretraining instead of the scale's.")] = None,
    text: Annotated[
        str | None,
        typer.Option(help="The corpus: a file, a folder, a glob, hf:owner/name, or python.", show_default="python"),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Labelled texts, for claims about fine-tuning.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at once.", show_default="one a core")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")] = Path("runs/reproduce"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdicts as JSON; the rest goes to stderr.")
    ] = False,
) -> None:
    """See whether a paper's claim holds here: reproduced, not reproduced or undecided, with effect and interval.

    What is varied, what is held equal and what decides is fixed in the library before anything runs. Interrupted, the
    same command goes on.

    Example: stemma reproduce glm-shuffling --seeds 3
    """
    import os
    from dataclasses import asdict

    from rich.console import Console

    from stemma.cli.compare import observed
    from stemma.insights.claims import claim_named
    from stemma.insights.reproduce import CLAIMS, REPORT, description, trial_of
    from stemma.insights.reproduce import reproduce as run
    from stemma.insights.workers import Interrupted

    console = Console(stderr=as_json)
    if not claims:
        for claim in CLAIMS.values():
            console.print(description(claim) + "\n", highlight=False, markup=False, soft_wrap=True)
        return
    given = {"steps": steps, "text": text, "labels": labels}
    trials = [trial_of(claim_named(name, CLAIMS), seeds=seeds, scale=scale, given=given) for name in claims]
    verdicts = []
    for trial in trials:
        claim = trial.claim
        try:
            with observed(trial.board, console) as observer:
                decision = run(trial, out, workers=workers or os.cpu_count() or 1, observer=observer)
        except Interrupted:
            console.print("interrupted; the same command goes on from here", highlight=False)
            raise typer.Exit(130) from None
        verdicts.append({"claim": claim.name, **asdict(decision)})
        console.print(f"{claim.name}: {decision.outcome}", style="bold", highlight=False)
        console.print(f"  {claim.decides}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"  effect {decision.effect}  {decision.premise}", highlight=False, markup=False)
        for name, interval in (decision.details or {}).items():
            console.print(f"  {name}: {interval}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(verdicts))
    else:
        console.print(f"report: {out / REPORT}", highlight=False, soft_wrap=True)
