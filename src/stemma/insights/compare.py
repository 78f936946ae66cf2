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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from stemma import families
from stemma.data.corpora import CorpusSource
from stemma.data.labelled import LabelledData, read_labelled, split_by_hash
from stemma.data.shards import prepare
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.evaluation.blanks import way_of
from stemma.evaluation.left_to_right import likelihood_of
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.files import cache_directory, write_whole
from stemma.finetuning.recipe import build_recipe
from stemma.finetuning.run import finetune
from stemma.inference.filling_scores import score_fillings
from stemma.inference.generate import generate
from stemma.inference.infilling import continue_text
from stemma.insights.arms import ARMS, Scale, common_tokenizer, configurations, count_parameters, recipe_of
from stemma.insights.passages import draw_choices, draw_passages, make_blanks, make_several_blanks
from stemma.insights.python_labels import python_labels
from stemma.insights.workers import Interrupted, Report, Reporter, run_jobs
from stemma.training.pretrain import find_tokenizer, pretrain
from stemma.training.recipe import Recipe

PLAN, MEASURES, RESULTS, REPORT = "plan.json", "measures.json", "results.json", "report.html"
VERSION = 1

# Of a default budget of 8 minutes on two cores: tokens of text for each model, found by trying on such a machine.
_MINUTES, _TOKENS = 8.0, 205_000
# Layers, hidden, heads, vocabulary, batch, length, and what a token costs as a multiple of the first. A larger model is
# taken once it would see about as many tokens as it has parameters.
_SIZES = (
    (2, 128, 4, 1024, 8, 64, 1),
    (4, 192, 6, 2048, 16, 128, 5),
    (6, 256, 8, 4096, 32, 128, 15),
    (8, 512, 8, 8192, 32, 256, 80),
    (12, 768, 12, 16384, 64, 256, 300),
)
_ENOUGH = 8
_TEST, _DEV = 0.4, 0.1  # shares of the labelled examples


@dataclass(frozen=True)
class Plan:
    """Everything that decides the results.

    Args:
        text, field, documents: the corpus (see `CorpusSource`). labels, label_text, label_column: a table of labelled
            texts, or "python" (see python_labels.py), or None: no fine-tuning.
        arms: names of `ARMS`. seeds: each is a whole repetition. scale: sizes, chosen for a budget of `minutes`.
        examples: labelled ones to train on, at most. epochs: of fine-tuning.
        passages, blanks: how many are scored, of so many tokens. longest_blank: in tokens.
        several_blanks: of a GLM: passages with three blanks each that are scored in several orders.
    """

    text: str
    field: str
    documents: str
    labels: str | None
    label_text: str
    label_column: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: Scale
    minutes: float = 8.0
    held_out: float = 0.05
    examples: int = 96
    epochs: int = 15
    passages: int = 48
    passage_tokens: int = 64
    blanks: int = 192
    blank_tokens: int = 64
    longest_blank: int = 6
    several_blanks: int = 0
    version: int = VERSION

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        with write_whole(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Plan":
        """Return the plan that was made a dictionary."""
        return TypeAdapter(cls).validate_python(content)

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read what `write` wrote.

        Raises:
            InputError: the file is none.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: not the plan of a comparison ({reason}); give another --out") from error


def scale_for(minutes: float, arms: int, seeds: int) -> Scale:
    """Return model size and training for a budget in minutes on two cores; tokens are shared by all models."""
    share = minutes / _MINUTES * 18 / (arms * seeds)  # of the default's six frameworks and three seeds
    *size, cost = next(row for row in reversed(_SIZES) if share >= _ENOUGH * row[-1] or row is _SIZES[0])
    layers, hidden, heads, vocabulary, batch, length = size
    steps = max(round(_TOKENS * share / cost / (batch * length)), 10)
    return Scale(layers, hidden, heads, vocabulary, steps, batch, length)


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


@dataclass
class Observer:
    """Who is told how the comparison goes; see `cli.compare`."""

    say: Callable[[str], None] = lambda message: None
    event: Report = lambda event: None
    measured: Callable[[str, Mapping[str, Any]], None] = lambda job, measures: None
    tick: Callable[[], None] = field(default=lambda: None)


def compare(plan: Plan, out: Path, *, workers: int = 2, observer: Observer | None = None) -> dict[str, Any]:
    """Run the comparison, or go on with one that is in `out`; return its results, as in `out`/results.json.

    Raises:
        InputError: `out` holds another comparison or something else, or text or labels that cannot be used.
        Interrupted: everything finished so far is kept.
    """
    observer = observer or Observer()
    cache = cache_directory()
    _claim(plan, out)
    tokenizer = _shared_tokenizer(plan, out, cache, observer)
    _shared_labels(plan, out)
    jobs = [Job(arm, seed, str(out), str(cache), plan) for seed in plan.seeds for arm in plan.arms]
    todo = [job for job in jobs if _measures(out, job.name) is None]
    for job in jobs:
        if job not in todo:
            observer.measured(job.name, _measures(out, job.name) or {})
    if todo:
        observer.say(f"{len(todo)} of {len(jobs)} models to train on {plan.scale.tokens:,} tokens each")

        def on_event(event: tuple[str, str, int, int, dict[str, float]]) -> None:
            observer.event(event)
            if event[1] == "done":
                observer.measured(event[0], _measures(out, event[0]) or {})

        run_jobs(run_job, todo, workers=workers, on_event=on_event, tick=observer.tick)
    results = {
        "plan": asdict(plan),
        "parameters": _parameters(plan, tokenizer),
        "measures": {job.name: _measures(out, job.name) for job in jobs},
        "curves": {job.name: _curve(out / job.name / "pretrained") for job in jobs},
    }
    with write_whole(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def run_job(job: Job, report: Report) -> None:
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
    with write_whole(folder / MEASURES) as temporary:
        temporary.write_text(json.dumps(measures) + "\n", encoding="utf-8")
    report((job.name, "done", 1, 1, {}))


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


@torch.inference_mode()
def measure_model(model: Any, tokenizer: Tokenizer, plan: Plan, cache: Path) -> dict[str, Any]:
    """Return what a pretrained model makes of held-out passages and their blanks.

    Returns:
        bits_per_byte; blank_nll (nats per token of a piece, its end not counted), exact_match, rouge_l; choice: the
        share of right choices among four pieces; samples: the first blanks and what was written.
    """
    split = prepare(_source(plan), tokenizer, cache, None).held_out
    passages = draw_passages(split, plan.passages, plan.passage_tokens)
    scores = likelihood_of(model, tokenizer).log_probabilities(passages)
    size = sum(len(tokenizer.decode(passage).encode()) for passage in passages)
    blanks = make_blanks(draw_passages(split, plan.blanks, plan.blank_tokens), plan.longest_blank)
    way = way_of(model, tokenizer)
    pieces = way.log_probabilities(blanks)
    inner = [piece[:-1] if way.ends else piece for piece in pieces]
    written, expected = way.write(blanks), [blank.piece for blank in blanks]
    texts = [(tokenizer.decode(w).strip(), tokenizer.decode(e).strip()) for w, e in zip(written, expected, strict=True)]
    choices = draw_choices(blanks, 3)
    values = iter(way.choice([option for options in choices for option in options]))
    right = [int(np.argmax([next(values) for _ in options])) == 0 for options in choices]
    writes = _write_on(model, tokenizer, passages[0][:8])
    several = _several_blanks(model, tokenizer, split, plan) if plan.several_blanks and isinstance(model, GLM) else {}
    return several | {
        "bits_per_byte": -sum(float(score.sum()) for score in scores) / np.log(2) / size,
        "blank_nll": -sum(float(piece.sum()) for piece in inner) / sum(map(len, expected)),
        "exact_match": sum(w == e for w, e in texts) / len(texts),
        "rouge_l": sum(_rouge_l(w, e) for w, e in texts) / len(texts),
        "choice": sum(right) / len(right),
        "continuation": writes,
        "samples": [
            {
                "before": tokenizer.decode(blank.before),
                "piece": tokenizer.decode(blank.piece),
                "after": tokenizer.decode(blank.after),
                "written": tokenizer.decode(piece),
            }
            for blank, piece in zip(blanks[:6], written, strict=False)
        ],
    }


def _write_on(model: Any, tokenizer: Tokenizer, prompt: Sequence[int]) -> dict[str, str] | None:
    """Return a sample of what a model writes after a prompt; None where it does not write from left to right."""
    text = tokenizer.decode(prompt)
    options: dict[str, Any] = {"temperature": 0.8, "seed": 1}
    if isinstance(model, GPT):
        return {"prompt": text, "text": generate(model, tokenizer, text, max_new_tokens=48, **options)[0].text}
    if isinstance(model, GLM):
        written = continue_text(model, tokenizer, text, max_piece_tokens=48, **options)[0].pieces[0]
        return {"prompt": text, "text": written}
    return None


def _several_blanks(model: GLM, tokenizer: Tokenizer, split: TokenizedSplit, plan: Plan) -> dict[str, float]:
    """Return nats per token, the ends of pieces included, of three blanks a passage: filled from left to right, and in
    the mean over all orders."""
    ids = GLMTokens.of(tokenizer)
    passages = draw_passages(split, plan.several_blanks, plan.blank_tokens, seed=1)
    contexts, fillings = [], []
    for passage, spans in zip(passages, make_several_blanks(passages, 3, plan.longest_blank), strict=True):
        context, end = [ids.beginning], 0
        for start, stop in spans:
            context += [*passage[end:start], ids.mask]
            end = stop
        contexts.append([*context, *passage[end:], ids.end])
        fillings.append([passage[start:stop] for start, stop in spans])
    tokens = sum(len(piece) + 1 for pieces in fillings for piece in pieces)
    totals = {
        name: -sum(map(sum, score_fillings(model, ids, contexts, fillings, orders=orders)))
        for name, orders in (("text_order_nll", 1), ("all_orders_nll", 6))
    }
    return {name: total / tokens for name, total in totals.items()}


def _rouge_l(written: str, expected: str) -> float:
    from stemma.evaluation.texts import rouge_l

    return rouge_l(written, expected)


def _finetuned(job: Job, folder: Path, stage: str, initialize: bool, display: Reporter) -> dict[str, float]:
    plan, arm = job.plan, ARMS[job.arm]
    family = "bert" if arm.family == "unilm" else arm.family
    given: dict[str, Any] = {
        "model": str(folder / "pretrained"),
        "data": {name: str(Path(job.out) / f"labels-{name}.jsonl") for name in ("train", "dev", "test")},
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
    rows = (Path(job.out) / "labels-train.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted({json.loads(row)["label"] for row in rows})


def _one_token_words(tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, str]:
    """Return a word of one token for each label: then all are read off one pass, whatever the labels are called.

    Longest beginnings of the labels first, else letters; published verbalisers are as arbitrary ("b" and "2" for WiC).
    """
    words: dict[str, str] = {}
    for label in labels:
        beginnings = [label[:end] for end in range(len(label), 0, -1)]
        for word in [*beginnings, *string.ascii_letters, *string.digits]:
            if word not in words.values() and len(tokenizer.encode(f" {word}")) == 1:
                words[label] = word
                break
        else:
            return {}
    return words


def _claim(plan: Plan, out: Path) -> None:
    path = out / PLAN
    if path.is_file():
        there = asdict(Plan.read(path))
        changed = [f"{name}: {value}, {there[name]}" for name, value in asdict(plan).items() if there[name] != value]
        if changed:
            raise InputError(f"{out}: holds another comparison (here, there): {'; '.join(changed)}. Give another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds something else; expected a new or empty directory")
    out.mkdir(parents=True, exist_ok=True)
    plan.write(path)


def _source(plan: Plan) -> CorpusSource:
    return CorpusSource(plan.text, plan.field, plan.documents, plan.held_out)


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
        tokenizer = common_tokenizer(find_tokenizer(recipe, _source(plan), cache, lambda stage, done, total: None))
        folder.mkdir(exist_ok=True)
        tokenizer.save(folder)
    tokenizer = load_tokenizer(folder)
    corpus = prepare(_source(plan), tokenizer, cache, None)
    observer.say(f"text       {plan.text}: {corpus.summary}")
    return tokenizer


def _shared_labels(plan: Plan, out: Path) -> None:
    """Divide the labelled texts into files for training, for choosing the best weights and for testing."""
    if plan.labels is None or (out / "labels-test.jsonl").is_file():
        return
    if plan.labels == "python":
        data = python_labels(each=96)
    else:
        data = read_labelled(Path(plan.labels), text=plan.label_text, label=plan.label_column)
    rest, test = split_by_hash(data, _TEST, seed=1)
    train, dev = split_by_hash(rest, _DEV / (1 - _TEST), seed=2)
    train = LabelledData(train.texts[: plan.examples], train.labels[: plan.examples], train.label_names)
    for name, part in (("train", train), ("dev", dev), ("test", test)):
        _write_labels(part, out / f"labels-{name}.jsonl")


def _write_labels(data: LabelledData, path: Path) -> None:
    names = data.label_names
    lines = [
        json.dumps({"text": texts[0], "label": names[int(label)]})
        for texts, label in zip(data.texts, data.labels, strict=True)
    ]
    with write_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measures(out: Path, job: str) -> dict[str, Any] | None:
    path = out / job / MEASURES
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


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
