"""`stemma compare`: the frameworks side by side on the same text, tokens and parameters.

<out>/plan.json                      what is compared, decided once; the same command goes on with it
<out>/tokenizer/, labels-*.jsonl     what all share
<out>/<framework>-<seed>/pretrained  runs of `pretrain` ...
<out>/<framework>-<seed>/finetuned, .../from-random    ... and of `finetune`
<out>/<framework>-<seed>/measures.json                 what came out
<out>/results.json, report.html
"""

import json
import string
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stemma import families
from stemma.data.shards import prepare
from stemma.data.tokenizers import Tokenizer, load_tokenizer, pieces_in_text
from stemma.files import cache_directory
from stemma.finetuning.recipe import build_recipe
from stemma.finetuning.run import finetune
from stemma.insights.arms import ARMS, common_tokenizer, configurations, count_parameters, recipe_of
from stemma.insights.experiments import Observer, claimed, run_missing, write_results
from stemma.insights.labels import PARTS, divide_labelled, labelled, part_of
from stemma.insights.measures import measure_model
from stemma.insights.passages import draw_passages
from stemma.insights.plan import Plan
from stemma.insights.workers import Interrupted, Report, Reporter
from stemma.training.pretrain import find_tokenizer, pretrain
from stemma.training.recipe import Recipe

REPORT = "report.html"


@dataclass(frozen=True)
class Job:
    """One framework with one seed."""

    arm: str
    seed: int
    out: str
    cache: str
    plan: Plan

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def compare(plan: Plan, out: Path, *, workers: int = 2, observer: Observer | None = None) -> dict[str, Any]:
    """Run the comparison, or go on with one that is in `out`; return its results, as in `out`/results.json.

    Raises:
        InputError: `out` holds another comparison or something else, or text or labels that cannot be used.
        Interrupted: everything finished so far is kept.
    """
    observer = observer or Observer()
    cache = cache_directory()
    with claimed(out, asdict(plan)):
        tokenizer = _shared_tokenizer(plan, out, cache, observer)
        if plan.labels is not None and not part_of(out, "test").is_file():
            table = labelled(plan.labels, text=plan.label_text, label=plan.label_column, each=96)
            divide_labelled(table, out, examples=plan.examples)
    observer.say(f"training   {plan.scale.tokens:,} tokens for each model")
    jobs = [Job(arm, seed, str(out), str(cache), plan) for seed in plan.seeds for arm in plan.arms]
    measures = run_missing(run_job, jobs, out, workers=workers, observer=observer)
    results = {
        "plan": asdict(plan),
        "parameters": _parameters(plan, tokenizer),
        "measures": measures,
        "curves": {job.name: _curve(out / job.name / "pretrained") for job in jobs},
    }
    return write_results(out, results)


def run_job(job: Job, report: Report) -> dict[str, Any]:
    """Train and measure one framework with one seed; what is there already is not done again."""
    out, plan = Path(job.out), job.plan
    folder = out / job.name
    started = time.monotonic()
    display = Reporter(job.name, report, "pretraining")
    outcome = pretrain(
        recipes(plan, out)[job.arm, job.seed], folder / "pretrained", display=display, cache=Path(job.cache)
    )
    if outcome.reason == "interrupted":
        raise Interrupted
    measures: dict[str, Any] = {"pretraining_loss": (outcome.progress.evaluation or {}).get("loss")}
    measures["pretraining_seconds"] = outcome.progress.seconds
    if plan.labels is not None:
        for stage, initialize in (("finetuned", False), ("from-random", True)):
            display.stage = "fine-tuning" if not initialize else "fine-tuning from random weights"
            measures[stage] = _finetuned(job, folder, stage, initialize, display)
    report((job.name, "measuring", 0, 0, {}))
    model, tokenizer = families.load(folder / "pretrained"), load_tokenizer(folder / "pretrained")
    measures |= measure_model(model, tokenizer, plan, Path(job.cache))
    measures["seconds"] = time.monotonic() - started
    return measures


def recipes(plan: Plan, out: Path) -> dict[tuple[str, int], Recipe]:
    """Return the pretraining recipe of each framework and seed."""
    tokenizer = load_tokenizer(out / "tokenizer")
    arms = [ARMS[name] for name in plan.arms]
    configs = configurations(arms, plan.scale, tokenizer.vocabulary)
    source = {"source": plan.text, "field": plan.field, "documents": plan.documents, "held_out": plan.held_out}
    found = {}
    for name, arm, config in zip(plan.arms, arms, configs, strict=True):
        for seed in plan.seeds:
            path = str(out / "tokenizer")
            found[name, seed] = recipe_of(arm, config, plan.scale, tokenizer=path, source=source, seed=seed)
    return found


def _finetuned(job: Job, folder: Path, stage: str, initialize: bool, display: Reporter) -> dict[str, float]:
    plan, arm = job.plan, ARMS[job.arm]
    family = "bert" if arm.family == "unilm" else arm.family
    given: dict[str, Any] = {
        "model": str(folder / "pretrained"),
        "data": {name: str(part_of(Path(job.out), name)) for name in PARTS},
        "initialize": initialize,
        "seed": job.seed,
        "training": {"learning_rate": 1e-3, "batch": 8, "epochs": plan.epochs, "weight_decay": 0.01},
        "output": {"save_every": 1 << 20, "keep": 1},
    }
    given["data"]["longest"] = 64
    given["training"]["schedule"] = {"name": "linear", "warmup": 0.1}
    if family == "glm":
        given["task"] = {
            "label_words": _one_token_words(load_tokenizer(Path(job.out) / "tokenizer"), _label_names(job))
        }
    recipe = build_recipe(given, (), family=family, parameters=0, examples=1 << 60)
    outcome, results = finetune(recipe, folder / stage, display=display)
    if results is None:
        raise Interrupted
    return {name: results[name]["metrics"]["accuracy"] for name in ("dev", "test")} | {
        "majority": results["test"]["majority"]
    }


def _label_names(job: Job) -> list[str]:
    rows = part_of(Path(job.out), "train").read_text(encoding="utf-8").splitlines()
    return sorted({json.loads(row)["label"] for row in rows})


def _one_token_words(tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, str]:
    """Return a word of one token for each label: then all are read off one pass, whatever the labels are called.

    Longest beginnings of the labels first, else letters; published verbalisers are as arbitrary ("b" and "2" for WiC).
    """
    words: dict[str, str] = {}
    for label in labels:
        beginnings = [label[:end] for end in range(len(label), 0, -1)]
        for word in [*beginnings, *string.ascii_letters, *string.digits]:
            if word not in words.values() and len(pieces_in_text(tokenizer, [word])[0]) == 1:
                words[label] = word
                break
        else:
            return {}
    return words


def _shared_tokenizer(plan: Plan, out: Path, cache: Path, observer: Observer) -> Tokenizer:
    """Learn the tokenizer and tokenise the corpus, once for all."""
    folder = out / "tokenizer"
    if not (folder / "tokenizer_config.json").is_file():
        observer.say("learning the tokenizer and tokenising the text ...")
        recipe = Recipe.model_validate(
            {
                "family": "gpt",
                "tokenizer": {"kind": "bpe", "vocabulary": plan.scale.vocabulary},
                "training": {"steps": 1, "batch": 1, "learning_rate": 1.0},
            }
        )
        tokenizer = common_tokenizer(find_tokenizer(recipe, plan.source, cache, lambda stage, done, total: None))
        folder.mkdir(exist_ok=True)
        tokenizer.save(folder)
    tokenizer = load_tokenizer(folder)
    corpus = prepare(plan.source, tokenizer, cache, None)
    for tokens in (plan.passage_tokens, plan.blank_tokens):
        draw_passages(corpus.held_out, 1, tokens)  # what cannot be measured fails before anything is trained
    observer.say(f"text       {plan.text}: {corpus.summary}")
    return tokenizer


def _parameters(plan: Plan, tokenizer: Tokenizer) -> dict[str, int]:
    arms = [ARMS[name] for name in plan.arms]
    configs = configurations(arms, plan.scale, tokenizer.vocabulary)
    return {
        name: count_parameters(arm.family, config) for name, arm, config in zip(plan.arms, arms, configs, strict=True)
    }


def _curve(run: Path) -> dict[str, Sequence[float]]:
    """Return the losses of a run by tokens of text."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    return {"tokens": [tokens for tokens, _ in train], "loss": [loss for _, loss in train]}
