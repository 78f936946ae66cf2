"""The claims about what prompts can do: their tasks, how they are decided, and that they run."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.data.tokenizers import load_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.insights import chain_of_thought, experiments, in_context
from stemma.insights.card_tasks import (
    ALL_TASKS,
    ATTRIBUTES,
    CARDS,
    CLASSES,
    Documents,
    best_possible,
    divide_tasks,
    draw_documents,
)
from stemma.insights.experiments import Experiment, run_experiment
from stemma.insights.worked_sums import Sum, draw_examples, draw_questions
from stemma.prompting.evaluating import Protocol, evaluate
from stemma.prompting.extraction import rule_named
from stemma.prompting.models import LocalModel, Written
from stemma.prompting.task_files import TaskFile
from stemma.prompting.tasks import Question, Task


def results(plan: dict[str, Any] | None = None, **arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of an experiment: of each arm the measures of seeds 1, 2, ...; "_" in names stands for "-"."""
    measures = {
        f"{arm.replace('_', '-')}-{seed}": row for arm, rows in arms.items() for seed, row in enumerate(rows, 1)
    }
    seeds = list(range(1, len(next(iter(arms.values()))) + 1))
    return {"plan": {"seeds": seeds, **(plan or {})}, "measures": measures}


def test_unseen_tasks_share_nothing_with_those_that_are_trained() -> None:
    assert len(set(ALL_TASKS)) == len(ALL_TASKS) == 168
    tables = {tuple(task.class_of(card) for card in CARDS) for task in ALL_TASKS}
    assert len(tables) == 168  # none is another one under a different description
    learned, unseen = divide_tasks(3)
    assert sorted(learned + unseen) == list(range(168)) and len(unseen) == 42
    attributes = [ALL_TASKS[number].attributes for number in unseen]
    assert all(attributes.count(one) == 6 for one in set(attributes)) and len(set(attributes)) == 7
    assert (learned, unseen) == divide_tasks(3) != divide_tasks(4)


def test_documents_show_the_classes_of_one_task() -> None:
    _, unseen = divide_tasks(1)
    drawn = draw_documents(unseen, 40, 9, np.random.default_rng(1))
    again = draw_documents(unseen, 40, 9, np.random.default_rng(1))
    assert drawn.lines == again.lines and len(set(drawn.lines)) == 40
    for line in drawn.lines:
        words = line.split()
        shown = [tuple(words[start : start + 4]) for start in range(0, 36, 4)]
        assert len({card[:3] for card in shown}) == 9
        fitting = [
            number
            for number, task in enumerate(ALL_TASKS)
            if all(
                sum(ATTRIBUTES[at].index(card[at]) for at in task.attributes) % 4
                == task.classes.index(CLASSES.index(card[3]))
                for card in shown
            )
        ]
        assert set(fitting) & set(unseen)


def test_the_best_that_is_possible_by_counting_tasks() -> None:
    """Two cards: red tiny cube (0, 0, 0) and red tiny ball (0, 0, 1), whose classes differ or not."""
    first, second = CARDS.index((0, 0, 0)), CARDS.index((0, 0, 1))
    cards = np.array([[first, second], [first, second]])
    found = best_possible(Documents(cards, np.array([[2, 2], [2, 1]])))
    assert found[:, 0].tolist() == [0.25, 0.25]
    # Of the 42 tasks that call the first one C, those that do not look at the third attribute (3 of 7) say C again: 18;
    # the others say A, B and D alike: 8 each.
    agreeing = [task for task in ALL_TASKS if task.class_of((0, 0, 0)) == 2]
    says = [sum(task.class_of((0, 0, 1)) == own for task in agreeing) for own in range(4)]
    assert says == [8, 8, 18, 8] and found[:, 1].tolist() == [1.0, 0.0]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    in_context.prepare({}, tmp_path)
    return load_tokenizer(tmp_path / "tokenizer")


def test_one_reading_gives_what_prompts_of_every_number_of_shots_give(tokenizer: Any) -> None:
    """The accuracies are those of the project's own few-shot evaluation by likelihood."""
    assert tokenizer.vocabulary == 12 + 4 + 3 and tokenizer.unknown not in tokenizer.encode("red huge ring D")
    torch.manual_seed(1)
    model = GPT(GPTConfig(tokenizer.vocabulary, context=40, layers=2, hidden=16, heads=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    drawn = draw_documents(divide_tasks(1)[1], 30, 9, np.random.default_rng(2))
    expected = []
    for shots in in_context.SHOTS:
        file = TaskFile.model_validate(
            {
                **{"task": "cards", "dataset_path": "json", "doc_to_text": "card", "doc_to_target": "class"},
                **{"doc_to_choice": "classes", "output_type": "multiple_choice", "description": "</s> "},
            }
        )
        questions = [
            Question(str(number), " ".join(line.split()[: 4 * shots + 3]), "", "", CLASSES, int(classes[shots]))
            for number, (line, classes) in enumerate(zip(drawn.lines, drawn.classes, strict=True))
        ]
        asked = _WithSeparator(model, tokenizer)
        expected.append(evaluate(asked, Task(file, questions, ()), Protocol(shots=0)).metrics["acc"].mean)
    assert in_context.accuracies(model, tokenizer, drawn) == expected
    assert len(set(expected)) > 2


class _WithSeparator(LocalModel):
    """Texts begin as documents do in training: the separator stands for the description of the task."""

    def score(self, pairs: Any) -> Any:
        from stemma.inference.scoring import score_continuations
        from stemma.prompting.models import Score

        found = score_continuations(
            self.model,
            [
                ((self.tokenizer.separator, *self.tokenizer.encode(text.removeprefix("</s> "))),
                 tuple(self.tokenizer.encode(choice.strip())))
                for text, choice in pairs
            ],
        )  # fmt: skip
        return [Score(sum(one.log_probabilities), 1, one.is_greedy, False, 1) for one in found]


def shown(first: list[float], last: list[float], *, zero: float = 0.25, learned: float = 0.9) -> dict[str, Any]:
    """Accuracies of the smallest and largest model that rise in equal steps to what is given for each seed."""

    def rows(ends: list[float]) -> list[dict[str, Any]]:
        rising = np.log2([1, 2, 3, 5, 9]) / np.log2(9)
        return [
            {"accuracy": (zero + (end - zero) * rising).tolist(), "learned": [zero] * 4 + [learned], "best": [0.25] * 5}
            for end in ends
        ]

    return results(small=rows(first), middle=rows(first), large=rows(last))


def test_slopes_decide_whether_size_helps_in_context() -> None:
    found = in_context.decide(shown([0.35, 0.36, 0.34], [0.8, 0.81, 0.82]))
    assert found.outcome == "reproduced"
    assert found.effect.estimate == pytest.approx((0.81 - 0.35) / np.log2(9))
    assert found.details is not None and found.details["slope of the largest GPT"].estimate == pytest.approx(
        0.56 / np.log2(9)
    )
    assert found.details["accuracy with 8 shots, largest minus smallest"].estimate == pytest.approx(0.46)
    assert found.details["slope of the best possible"].estimate == pytest.approx(0)
    decide = in_context.decide
    assert decide(shown([0.8, 0.81, 0.82], [0.35, 0.36, 0.34])).outcome == "not reproduced"
    assert decide(shown([0.01, 0.0, 0.02], [0.2, 0.21, 0.22])).outcome == "not reproduced"  # examples do harm
    assert decide(shown([0.5, 0.6, 0.7], [0.6, 0.5, 0.75])).outcome == "undecided"
    known = decide(shown([0.35, 0.36, 0.34], [0.8, 0.81, 0.82], zero=0.4))
    assert known.outcome == "undecided" and "without examples" in known.premise
    dull = decide(shown([0.35, 0.36, 0.34], [0.8, 0.81, 0.82], learned=0.29))
    assert dull.outcome == "undecided" and "its own tasks" in dull.premise
    (chart,) = in_context.charts(shown([0.35, 0.36, 0.34], [0.8, 0.81, 0.82]))
    assert len(chart.series) == 4 and chart.series[2].x == (1, 2, 3, 5, 9)
    assert chart.series[2].y[-1] == pytest.approx(0.81)


def test_workings_are_right_in_every_order() -> None:
    asked = draw_questions(6, 20, np.random.default_rng(1))
    assert [len(one.steps) for one in asked] == [steps for steps in range(1, 7) for _ in range(20)]
    assert len(set(asked)) == 120
    rng = np.random.default_rng(2)
    for one in asked:
        order = rng.permutation(len(one.steps)).tolist()
        question, *working = one.worked(order).split(" = ", 1)[0], *one.worked(order).split(" = ", 1)[1].split(" ; ")
        assert f"{question} =" == one.question
        *lines, said = working
        assert said == f"The answer is {eval(question) % 10} ."
        assert one.answered == f"{question} = {said}"
        for line in lines:
            made, result = line.split(" = ")
            assert eval(made) % 10 == int(result)
        numbers = sorted(line.split()[1:3] for line in lines)
        assert numbers == sorted([sign, str(number)] for sign, number in one.steps)


def test_sums_that_are_asked_are_not_learned() -> None:
    asked = [Sum(first, ((sign, number),)) for first, sign, number in product(range(10), "+-", range(10))]
    two = [Sum(first, (("+", 1), ("-", number))) for first, number in product(range(10), range(10))]
    learned = draw_examples(3000, 2, [*asked, *two], np.random.default_rng(3))
    assert len(learned) == 3000 and not set(learned) & set(two)
    assert {len(one.steps) for one in learned} == {1, 2} and set(learned) >= set(asked)
    # 100 of 4000 sums of two steps would otherwise come up some 37 times.
    others = [one for one in learned if [sign for sign, _ in one.steps] == ["+", "-"]]
    assert len(others) > 200


def test_answers_are_found_in_what_is_asked_for() -> None:
    (one,) = draw_questions(1, 1, np.random.default_rng(1))
    task = chain_of_thought.task_of([one, Sum(3, (("+", 5), ("-", 2)))], 3)
    assert [question.id for question in task.questions] == ["1-0", "2-1"] and task.questions[1].gold == "6"
    rule = rule_named("robust", "number")
    text = "3 - 2 = 1 ; 1 + 5 = 6 ; The answer is 6 "
    assert rule.is_right(rule.extract(text), "6") and not rule.is_right(rule.extract(text), "2")
    said = evaluate(_Says(["6 The answer is 6 ", "The answer is 5 ", "The answer is 6 "]), task, Protocol(votes=3))  # type: ignore[arg-type]
    assert said.records[1]["right"]["vote of 3, robust"] and said.costs["written tokens"] == 15


class _Says:
    """A model that says the same to every prompt."""

    fingerprint = "says"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def write(self, prompts: Any, how: Any) -> Any:
        assert tuple(how.stop) == (".",) and how.samples == 3 and how.sampling.temperature == 0.7
        return [[Written(text, 5, 4, -1.0, False) for text in self.texts] for _ in prompts]

    def fits(self, text: str, more: int) -> bool:
        return True


def sums(answers: float, longest: float, greedy: float, vote: float, *, table: float = 0.9) -> dict[str, Any]:
    """Three seeds. Answers are right in `table` sums of one step and `answers` of others; steps, greedily, in `greedy`
    of all but the longest sums and `longest` of these."""

    def rows(accuracy: list[float]) -> list[dict[str, Any]]:
        return [
            {"greedy": {"accuracy": [one + e for one in accuracy], "read": [8.0] * 6, "written": [5.0] * 6}}
            for e in (0.0, 0.001, -0.001)
        ]

    steps = rows([greedy] * 5 + [longest])
    for e, row in zip((0.0, 0.002, 0.001), steps, strict=True):
        row["vote"] = {"accuracy": [vote + e] * 6, "read": [80.0] * 6, "written": [200.0] * 6}
        row["votes"] = {"vote of 1": greedy, "vote of 20": vote}
    direct = rows([table] + [answers] * 5)
    return results({"votes": 20, "most_steps": 6}, answers=direct, answers_as_long=direct, steps=steps)


def test_what_steps_and_votes_are_worth() -> None:
    found = chain_of_thought.decide(sums(0.2, 0.8, 0.8, 0.9))
    assert found.outcome == "reproduced"
    # The gap is -.1, .6, .6, .6, .6, .6: by least squares it grows by 0.7 * 2.5 / 17.5.
    assert found.effect.estimate == pytest.approx(0.1)
    assert found.details is not None
    assert found.details["accuracy, vote minus greedy"].estimate == pytest.approx(0.101)
    assert found.details["accuracy, steps minus answers, equal examples"].estimate == pytest.approx(2.9 / 6)
    assert found.details["accuracy, vote of 20"].estimate == pytest.approx(0.9)
    decide = chain_of_thought.decide
    assert decide(sums(0.2, 0.8, 0.8, 0.7)).outcome == "not reproduced"  # votes do harm
    assert decide(sums(0.9, 0.8, 0.8, 0.9)).outcome == "not reproduced"  # answers are better
    assert decide(sums(0.2, 0.0, 0.95, 0.98)).outcome == "not reproduced"  # the gap shrinks with the steps
    assert decide(sums(0.2, 0.8, 0.8, 0.799)).outcome == "undecided"
    untrained = decide(sums(0.2, 0.8, 0.8, 0.9, table=0.4))
    assert untrained.outcome == "undecided" and "one step" in untrained.premise
    full = decide(sums(0.2, 1.0, 1.0, 1.0))
    assert full.outcome == "undecided" and "always right" in full.premise
    chart, cost = chain_of_thought.charts(sums(0.2, 0.8, 0.8, 0.9))
    assert [line.label for line in chart.series][-1] == "worked steps, vote of 20" and len(chart.series) == 4  # type: ignore[union-attr]
    assert len(cost.rows) == 24 and cost.rows[-1][3:] == (80, 200)  # type: ignore[union-attr]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are done in this process."""

    def run(work: Any, jobs: Any, *, workers: int, on_event: Any, tick: Any) -> None:
        for job in jobs:
            work(job, on_event)

    monkeypatch.setattr(experiments, "run_jobs", run)


def ran(experiment: Experiment, out: Path, **settings: Any) -> dict[str, Any]:
    found = run_experiment(experiment, {**experiment.scales["small"], **settings}, (1, 2), out, workers=1)
    assert all(column.value(found["measures"]["steps-1" if "steps-1" in found["measures"] else "large-1"]) is not None
               for column in experiment.columns)  # fmt: skip
    return found


@pytest.mark.slow
def test_sizes_are_asked_about_unseen_tasks(here: None, tmp_path: Path) -> None:
    sizes = {"small": [1, 8, 2], "middle": [1, 16, 2], "large": [2, 16, 2]}
    found = ran(in_context.EXPERIMENT, tmp_path, sizes=sizes, steps=3, batch=2, asked=50)
    one = found["measures"]["large-1"]
    assert [len(one[name]) for name in ("accuracy", "learned", "best")] == [5, 5, 5] and one["best"][-1] > 0.7
    assert one["parameters"] > found["measures"]["middle-1"]["parameters"]
    # All sizes learn from the same documents.
    texts = [(tmp_path / f"{arm}-1" / "lines.txt").read_text() for arm in sizes]
    assert texts[0] == texts[1] == texts[2] and len(texts[0].splitlines()) == 3 * 2 * 8
    decision = in_context.decide(found)
    assert decision.outcome == "undecided" and "did not learn its own tasks" in decision.premise


@pytest.mark.slow
def test_steps_and_answers_are_learned_and_asked(here: None, tmp_path: Path) -> None:
    small = {"most_steps": 2, "examples": 40, "size": [1, 16, 2], "context": 32, "batch": 2, "asked": 3, "votes": 2}
    found = ran(chain_of_thought.EXPERIMENT, tmp_path, **small)
    measures = found["measures"]
    direct, as_long, steps = (measures[f"{arm}-1"] for arm in ("answers", "answers-as-long", "steps"))
    assert direct["training_examples"] == steps["training_examples"] == 40 < as_long["training_examples"]
    assert as_long["training_tokens"] == pytest.approx(steps["training_tokens"], rel=0.1)
    assert direct["parameters"] == steps["parameters"]
    assert len(steps["vote"]["accuracy"]) == 2 and {"vote of 1", "vote of 2"} < set(steps["votes"])
    assert steps["vote"]["read"] == pytest.approx([2 * read for read in steps["greedy"]["read"]])
    texts = {arm: (tmp_path / f"{arm}-1" / "lines.txt").read_text().splitlines() for arm in ("answers", "steps")}
    questions = [[line.split(" = ")[0] for line in lines] for lines in texts.values()]
    assert questions[0] == questions[1]
    decision = chain_of_thought.decide(found)
    assert decision.outcome == "undecided" and "did not learn the sums of one step" in decision.premise
    chart, cost = chain_of_thought.charts(found)
    assert len(chart.series) == 4 and len(cost.rows) == 4 * 2  # type: ignore[union-attr]
