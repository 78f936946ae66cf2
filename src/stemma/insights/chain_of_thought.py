"""Does a model that learned to write its steps do longer sums, and do several ways to reason help? (Wei et al. 2022,
section 3; Wang et al. 2023, section 3.) Emergence with size cannot be shown by models so small."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.evaluation.intervals import Interval, over_seeds, paired_over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.line_models import TOKENIZER, pretrained, save_tokenizer
from stemma.insights.parts import Curves, Part, Series, Table
from stemma.insights.worked_sums import END, MODULUS, Sum, draw_examples, draw_questions
from stemma.insights.workers import Report
from stemma.prompting.evaluating import Evaluated, Protocol, evaluate
from stemma.prompting.models import LocalModel
from stemma.prompting.task_files import TaskFile
from stemma.prompting.tasks import Question, Task

DIRECT, AS_LONG, STEPS = "answers", "answers-as-long", "steps"
VOTE, GREEDY = "vote", "greedy"
KNOWN = 0.5  # accuracy on sums of one step that shows that these were learned
FULL = 0.99


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Make the tokenizer that all use: a token a word."""
    sums = draw_examples(1000, settings["most_steps"], [], np.random.default_rng(0))
    save_tokenizer([one.worked(range(len(one.steps))) for one in sums], shared)


def work(job: Job, report: Report) -> dict[str, Any]:
    """Train on sums with or without their working; return the accuracy and the cost on unseen ones, by their steps."""
    settings, most = job.settings, job.settings["most_steps"]
    tokenizer = load_tokenizer(job.shared / TOKENIZER)
    asked = draw_questions(most, settings["asked"], np.random.default_rng([job.seed, 1]))
    sums = draw_examples(settings["examples"], most, asked, np.random.default_rng([job.seed, 2]))
    lines, held_out = (_lines(job, which) for which in (sums, asked))
    if job.arm == AS_LONG:
        worked = _tokens(tokenizer, _worked(sums, job.seed))
        more = round(len(lines) * worked / _tokens(tokenizer, lines)) - len(lines)
        lines += _lines(job, draw_examples(more, most, asked, np.random.default_rng([job.seed, 4])))
    tokens = _tokens(tokenizer, lines)
    context, batch = settings["context"], settings["batch"]
    training = {"steps": max(tokens // (context * batch), 1), "batch": batch, "learning_rate": settings["rate"]}
    # Lines see those before them, so that a prompt can begin anywhere.
    folder = pretrained(
        job, report, lines, held_out, size=settings["size"], context=context, training=training, separate=False
    )
    model = families.load(folder)
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_examples": len(lines),
        "training_tokens": tokens,
    }
    local, task = LocalModel(model, tokenizer), task_of(asked, most)
    ways = {GREEDY: 1, VOTE: settings["votes"]} if job.arm == STEPS else {GREEDY: 1}
    for way, votes in ways.items():
        report((job.name, f"asking: {way}", 0, 0, {}))
        done = evaluate(local, task, Protocol(seed=job.seed, votes=votes), out=job.folder / way)
        found[way] = _by_steps(done, f"vote of {votes}, robust" if votes > 1 else "accuracy, robust", most)
        if votes > 1:
            robust = {name: share for name, share in done.metrics.items() if name.endswith(", robust")}
            found["votes"] = {name.removesuffix(", robust"): share.mean for name, share in robust.items()}
    return found


def _lines(job: Job, sums: Sequence[Sum]) -> list[str]:
    return _worked(sums, job.seed) if job.arm == STEPS else [one.answered for one in sums]


def _worked(sums: Sequence[Sum], seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 3])
    return [one.worked(rng.permutation(len(one.steps)).tolist()) for one in sums]


def _tokens(tokenizer: Tokenizer, lines: Sequence[str]) -> int:
    """Return the tokens of lines with those that separate them."""
    return sum(len(row) + 1 for row in tokenizer.encode_batch(lines))


def task_of(asked: Sequence[Sum], most: int) -> Task:
    """Return sums as a task to be answered in words; a question's id begins with its number of steps."""
    file = TaskFile.model_validate(
        {
            **{"task": "sums", "dataset_path": "json", "doc_to_text": "question", "doc_to_target": "answer"},
            "generation_kwargs": {"until": [END], "max_gen_toks": 6 * most + 8},  # a step has six words
            "stemma": {"answer": "number"},
        }
    )
    questions = [
        Question(f"{len(one.steps)}-{number}", one.question, str(one.answer), str(one.answer))
        for number, one in enumerate(asked)
    ]
    return Task(file, questions, ())


def _by_steps(done: Evaluated, name: str, most: int) -> dict[str, list[float]]:
    """Return accuracy and tokens by the number of steps."""
    found: dict[str, list[float]] = {"accuracy": [], "read": [], "written": [], "without_answer": [], "cut": []}
    for steps in range(1, most + 1):
        own = [record for record in done.records if record["id"].startswith(f"{steps}-")]
        costs = [record["costs"] for record in own]
        found["accuracy"].append(float(np.mean([record["right"][name] for record in own])))
        for key, cost in (
            ("read", "prompt tokens"),
            ("written", "written tokens"),
            ("without_answer", "without an answer"),
            ("cut", "cut"),
        ):
            found[key].append(float(np.mean([one[cost] for one in costs])))
    return found


def mean_of(way: str, key: str = "accuracy") -> Any:
    """Return what gives the mean of a way's measure over all numbers of steps; None where the arm has none."""
    return lambda measures: float(np.mean(measures[way][key])) if way in measures else None


def growth(gaps: Sequence[float]) -> float:
    """Return by how much a gap grows with each step: the least-squares line over 1, 2, 3, ... steps."""
    return float(np.polyfit(range(1, len(gaps) + 1), gaps, 1)[0])


def gaps(results: Results, control: str) -> list[list[float]]:
    """Return accuracy with steps minus a control's, greedily, for each seed a list by the number of steps."""
    pairs = zip(
        values(results, STEPS, lambda m: m[GREEDY]["accuracy"]),
        values(results, control, lambda m: m[GREEDY]["accuracy"]),
        strict=True,
    )
    return [np.subtract(*pair).tolist() for pair in pairs]


def decide(results: Results) -> Decision:
    """Decide by the gap between steps and answers, its growth, and the vote against the likeliest text."""
    own, as_long = gaps(results, DIRECT), gaps(results, AS_LONG)
    effect = over_seeds([growth(gap) for gap in own])
    mean = over_seeds([float(np.mean(gap)) for gap in own])
    mean_as_long = over_seeds([float(np.mean(gap)) for gap in as_long])
    voted = paired_over_seeds(values(results, STEPS, mean_of(VOTE)), values(results, STEPS, mean_of(GREEDY)))
    details: dict[str, Interval] = {
        "accuracy, steps minus answers, equal examples": mean,
        "accuracy, steps minus answers, equal tokens": mean_as_long,
        "growth of the gap with each step, equal tokens": over_seeds([growth(gap) for gap in as_long]),
        "accuracy, vote minus greedy": voted,
    }
    for name in results["measures"][f"{STEPS}-{results['plan']['seeds'][0]}"]["votes"]:
        details[f"accuracy, {name}"] = over_seeds(values(results, STEPS, lambda m, name=name: float(m["votes"][name])))  # type: ignore[misc]
    outcome, _ = by_all([effect, mean, mean_as_long, voted])
    table = over_seeds(values(results, AS_LONG, lambda m: float(m[GREEDY]["accuracy"][0])))
    greedy = over_seeds(values(results, STEPS, mean_of(GREEDY)))
    if table.estimate <= KNOWN:
        return Decision("undecided", effect, "the models of answers did not learn the sums of one step", details)
    if greedy.estimate >= FULL:
        return Decision("undecided", effect, "the likeliest text is always right: no vote can be better", details)
    return Decision(outcome, effect, details=details)


def charts(results: Results) -> Sequence[Part]:
    """Return accuracy against steps, a line an arm, and what each answer costs in tokens."""
    ways = [(arm, GREEDY, label) for arm, label in EXPERIMENT.arms.items()]
    ways.append((STEPS, VOTE, f"{EXPERIMENT.arms[STEPS]}, vote of {results['plan']['votes']}"))
    most = range(results["plan"]["most_steps"])
    lines, rows = [], []
    for arm, way, label in ways:
        points = {
            key: [
                over_seeds(values(results, arm, lambda m, key=key, place=place: float(m[way][key][place])))  # type: ignore[misc]  # noqa: B023
                for place in most
            ]
            for key in ("accuracy", "read", "written")
        }
        right = points["accuracy"]
        low, high = [point.low for point in right], [point.high for point in right]
        lines.append(Series(label, [place + 1 for place in most], [point.estimate for point in right], low, high))
        rows += [
            (label, str(place + 1), right[place], points["read"][place].estimate, points["written"][place].estimate)
            for place in most
        ]
    caption = f"Accuracy on unseen sums, by their number of steps; chance {1 / MODULUS}."
    cost = Table(
        ("", "steps", "accuracy", "tokens read", "tokens written"),
        rows,
        "What each answer costs, of a vote, all samples.",
    )
    return [Curves(lines, "steps", "accuracy", caption), cost]


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"most_steps": 6, "examples": 40_000, "size": [3, 96, 4], "context": 128, "batch": 8, "rate": 2e-3},
        **{"asked": 50, "votes": 20},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={
        DIRECT: "answers, as many examples",
        AS_LONG: "answers, as many tokens",
        STEPS: "worked steps",
    },
    scales={
        "small": _settings(),
        "medium": _settings(examples=400_000, size=[6, 192, 6], batch=16, rate=1e-3, asked=200, votes=40),
    },
    work=work,
    prepare=prepare,
    columns=(
        Column("accuracy, greedily", "greedy", mean_of(GREEDY)),
        Column("tokens written for an answer", "tokens", mean_of(GREEDY, "written"), more=False),
        Column("accuracy, by vote", "vote", mean_of(VOTE)),
        Column("tokens written for a vote", "", mean_of(VOTE, "written"), more=False),
        Column("share without an answer, greedily", "", mean_of(GREEDY, "without_answer"), more=False),
        Column("share cut by the limit of length, greedily", "", mean_of(GREEDY, "cut"), more=False),
        Column("training examples", "", lambda m: m["training_examples"]),
        Column("training tokens", "", lambda m: m["training_tokens"]),
        Column("parameters", "", lambda m: m["parameters"]),
    ),
    charts=charts,
)

CLAIM = Claim(
    name="chain-of-thought",
    source="Wei et al. 2022, section 3, figure 4; Wang et al. 2023, section 3 (in direction only: the models here were "
    "trained to write their steps, nothing emerges with size)",
    hypothesis="a model that writes its steps does more sums than one that answers at once, the more so the more steps "
    "a sum has; the answer that most of its samples come to is right more often than that of its likeliest text",
    varied="what follows a sum in training: its answer, or its steps in any order and its answer",
    controlled="parameters, batch, context, rate; sums to learn from, each read once (a second model of answers has "
    "more of them, as many tokens as the worked ones have); sums asked, of which those of two and more steps were "
    "never trained; seeds",
    decides="by how much the gap in accuracy between worked steps and answers (as many examples) grows with each step, "
    "from 1 to 6; reproduced if its interval lies above 0, as do those of the mean gap to both models of answers, and "
    "of vote minus greedy decoding; not reproduced if one of the four lies below; undecided if the model of as many "
    f"tokens of answers did not learn the sums of one step (above {KNOWN}), or greedy decoding is always right "
    f"(above {FULL})",
    decide=decide,
    experiment=EXPERIMENT,
)
