"""Tasks that stand in a prompt: what is asked, how it is counted, and that a run goes on where it was."""

import json
import math

import pytest
import torch

from stemma.errors import InputError
from stemma.prompting.evaluating import Protocol, Share, evaluate
from stemma.prompting.models import Score, Writing, Written
from stemma.prompting.prompts import draw_shots, prompt_of
from stemma.prompting.tasks import load_task
from stemma.prompting.voting import Vote, vote

from .conftest import CHOICE, WRITING


class Scripted:
    """A model that says what it is told to, and remembers what it was asked."""

    fingerprint = "scripted"

    def __init__(self, *texts):
        self.texts, self.asked = texts, []

    def score(self, pairs):
        return [Score(-1.0, 1, True, False, 1) for _ in pairs]

    def write(self, prompts, how):
        self.asked.append((list(prompts), how))
        text = self.texts[min(len(self.asked), len(self.texts)) - 1]
        said = [text] * how.samples if isinstance(text, str) else text
        return [[Written(one, 2, 3, -1.0, False) for one in said] for _ in prompts]

    def fits(self, text, more):
        return True


def test_choices_are_scored_as_they_would_be_alone(asked, task):
    found = evaluate(asked, load_task(task(CHOICE)), Protocol(shots=2))
    loaded = load_task(task(CHOICE))
    for question, record in zip(loaded.questions[:3], found.records[:3], strict=True):
        shots = draw_shots(loaded, question, 2, 1)
        assert [shot.id for shot in shots] == record["shots"] and question.id not in record["shots"]
        prompt = "".join(f"{shot.text} {shot.target}\n\n" for shot in shots) + question.text
        for choice, option in zip(question.choices, record["options"], strict=True):
            sums = []
            for context in (prompt, "Answer:"):
                start, whole = (asked.tokenizer.encode(text) for text in (context, f"{context} {choice}"))
                rows = asked.model(torch.tensor([whole]))[0].log_softmax(-1)
                sums.append(sum(rows[place - 1, whole[place]].item() for place in range(len(start), len(whole))))
            assert [option["log_probability"], option["unconditional"]] == pytest.approx(sums, abs=1e-4)
            assert option["characters"] == len(choice) and option["tokens"] == len(whole) - len(start)
    chosen = [max(range(3), key=lambda place: r["options"][place]["log_probability"]) for r in found.records]
    right = [float(place == 0) for place in chosen]
    share = sum(right) / 14
    assert found.metrics["acc"].mean == share
    assert found.metrics["acc"].error == pytest.approx(math.sqrt(share * (1 - share) / 13))
    assert Share.of([1.0]).error == 0


def test_normalised_scores_choose_otherwise():
    from stemma.prompting.evaluating import _Choosing
    from stemma.prompting.tasks import Question

    scores = [(Score(-3.0, 1, None, False, 1), Score(-1.0, 1, None, False, 1)),
              (Score(-4.0, 4, None, False, 1), Score(-3.5, 4, None, False, 1))]  # fmt: skip
    record = _Choosing._record(None, Question("", "", "", "", ["a", "éé"], 0), scores)
    assert record["chosen"] == {"acc": 0, "acc_norm": 1, "acc_bytes": 1, "acc_tokens": 1, "acc_unconditional": 1}


def test_examples_that_do_not_fit_are_left_out_whole(asked, task):
    loaded = load_task(task(CHOICE))
    question = loaded.questions[0]
    shots = draw_shots(loaded, question, 13, 1)
    assert shots == draw_shots(loaded, question, 13, 1) != draw_shots(loaded, question, 13, 2)
    prompt = prompt_of(loaded, question, shots, asked, reasoning=False, room=" the dog", more=0)
    assert 0 < len(prompt.shots) < 13 and list(prompt.shots) == [shot.id for shot in shots[-len(prompt.shots) :]]
    assert prompt.text.startswith("Q: ") and asked.fits(prompt.text + " the dog", 0)
    with pytest.raises(InputError, match="14 shots, and there are 13 examples"):
        draw_shots(loaded, question, 14, 1)
    first = load_task(task(CHOICE + "fewshot_config: {sampler: first_n}\n"))
    assert [shot.id for shot in draw_shots(first, question, 2, 5)] == ["test-1", "test-2"]


def test_a_run_goes_on_where_it_was(asked, task, tmp_path):
    loaded = load_task(task(CHOICE))
    whole = evaluate(asked, loaded, out=tmp_path / "out")
    path = tmp_path / "out/records.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 15 and json.loads((tmp_path / "out/results.json").read_text())["questions"] == 14
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:40])  # torn by a kill
    told = []
    again = evaluate(asked, loaded, out=tmp_path / "out", report=told.append)
    assert told == [5, 9] and again.metrics == whole.metrics and len(path.read_text().splitlines()) == 15
    with pytest.raises(InputError, match="of another run .*shots: 1, 0"):
        evaluate(asked, loaded, Protocol(shots=1), out=tmp_path / "out")
    path.write_text("x\n")
    with pytest.raises(InputError, match="not the records of an evaluation"):
        evaluate(asked, loaded, out=tmp_path / "out")


def test_a_continuation_is_greedy_or_not(asked, task):
    found = evaluate(asked, load_task(task(CHOICE.replace("multiple_choice", "loglikelihood"))))
    mean = sum(record["log_probability"] for record in found.records) / 14
    assert found.metrics["perplexity"].mean == pytest.approx(math.exp(-mean)) and 0 <= found.metrics["acc"].mean <= 1


def test_reasoning_in_two_stages_is_the_published_text(task):
    model = Scripted("two and three are 5.", " 5 apples of 9.")
    found = evaluate(model, load_task(task(WRITING), most=1), Protocol(shots=0, reasoning="zero-shot"))
    (first, how), (second, last) = model.asked
    assert first == ["Q: 2 plus 3\nA: Let's think step by step."]
    assert second == [first[0] + "two and three are 5. \nTherefore, the answer (arabic numerals) is"]
    assert (how.most, last.most, how.stop) == (6, 4, ["Q:"])
    assert found.metrics["accuracy, robust"].mean == found.metrics["accuracy, published"].mean == 1
    assert found.costs == {"shots": 0, "prompt tokens": 6, "written tokens": 4, "cut": 0, "without an answer": 0}


def test_solved_examples_have_their_reasoning(task):
    model = Scripted("2 and 3 make 5. The answer is 5.0.")
    found = evaluate(model, load_task(task(WRITING), most=1), Protocol(shots=1, reasoning="few-shot"))
    ((prompt,), _) = model.asked[0]
    assert " make " in prompt and ". The answer is " in prompt and prompt.endswith("\n\nQ: 2 plus 3\nA:")
    assert found.metrics["accuracy, robust"].mean == 1 and found.metrics["accuracy, published"].mean == 0


def test_least_to_most_answers_one_question_after_the_other(task):
    model = Scripted("What is 2?\nWhat is 3?", " two", " three", " 5")
    found = evaluate(model, load_task(task(WRITING), most=1), Protocol(shots=0, reasoning="least-to-most"))
    assert model.asked[-1][0][0].endswith("\nWhat is 2?\ntwo\nWhat is 3?\nthree\nTherefore, the answer "
                                          "(arabic numerals) is")  # fmt: skip
    assert found.metrics["accuracy, robust"].mean == 1


def test_votes_are_over_values():
    same = lambda one, other: float(one) == float(other)  # noqa: E731
    assert vote(["7", "8", "7.0", None], [-1, -1, -1, -1], same) == Vote("7", False)
    assert vote(["7", "8"], [-2, -1], same) == Vote("8", True)
    assert vote(["7", "8"], [-1, -1], same) == Vote("7", True)
    assert vote(["7", "7", "8"], [-1, -1, -1], same, [0.1, 0.1, 0.5]) == Vote("8", False)
    assert vote([None, None], [-1, -1], same) == Vote(None, False)


def test_votes_in_an_evaluation(task):
    model = Scripted([" 4", " 5", " 5.0", "none", " 5", " 6"])
    found = evaluate(model, load_task(task(WRITING), most=1), Protocol(shots=0, votes=6))
    assert model.asked[0][1].sampling.temperature == 0.7 and model.asked[0][1].samples == 6
    shares = {name: share.mean for name, share in found.metrics.items()}
    assert shares["vote of 1, robust"] == 0 and shares["vote of 5, robust"] == shares["vote of 6, robust"] == 1
    assert found.costs["without an answer"] == pytest.approx(1 / 6) and found.costs["tied votes"] == 0


def test_what_cannot_be_asked(asked, task, tmp_path):
    with pytest.raises(InputError, match="are for tasks whose answers are written"):
        evaluate(asked, load_task(task(CHOICE)), Protocol(votes=2))
    plain = WRITING.split("stemma:")[0]
    for protocol in (Protocol(votes=2), Protocol(reasoning="zero-shot")):
        with pytest.raises(InputError, match="need.* the key stemma.answer"):
            evaluate(asked, load_task(task(plain)), protocol)
    with pytest.raises(InputError, match="--reasoning deep: expected one of direct"):
        Protocol(reasoning="deep")
    with pytest.raises(InputError, match="needs the key stemma.reasoning"):
        bare = load_task(task(plain + "stemma: {answer: number}\n"))
        evaluate(asked, bare, Protocol(shots=1, reasoning="few-shot"))
    with pytest.raises(InputError, match="no votes"):
        evaluate(asked, load_task(task(WRITING)), Protocol(0, 1, "least-to-most", 2), out=tmp_path / "out")
    with pytest.raises(InputError, match="20 shots, and there are 13"):
        evaluate(asked, load_task(task(WRITING)), Protocol(shots=20), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()  # so that the next try is no other run's


def test_a_model_writes_as_generate_does(asked):
    from stemma.inference.generate import generate

    prompts = ["Q: 2 plus 3\nA:", "the quick brown"]
    found = asked.write(prompts, Writing(most=6, stop=["zz"]))
    wanted = generate(asked.model, asked.tokenizer, prompts, max_new_tokens=6, temperature=0, stop=["zz"])
    assert [own[0].text for own in found] == [one.text for one in wanted]
    assert all(own[0].tokens == 6 and own[0].cut for own in found)


def test_from_the_command_line(asked, task, stemma, tmp_path):
    from stemma.families import save

    save(asked.model, asked.tokenizer, tmp_path / "model")
    path = task(CHOICE)
    arguments = ["evaluate", tmp_path / "model", "--task", path, "--shots", "1", "--most", "4"]
    code, _, error = stemma(*arguments, "--out", f"{path}/out")
    assert code == 1 and "Not a directory" in error
    code, said, _ = stemma(*arguments, "--json")
    summary = json.loads(said)
    assert not code and summary["questions"] == 4 and summary["costs"]["shots"] == 1
    code, said, _ = stemma(*arguments)
    assert not code and "acc_norm" in said and "tokens a question" in said


def test_several_numbers_of_shots_make_a_curve(asked, task, stemma, tmp_path):
    from stemma.families import save
    from stemma.insights.report import read_report

    save(asked.model, asked.tokenizer, tmp_path / "model")
    arguments = ["evaluate", tmp_path / "model", "--task", task(CHOICE), "--most", "4", "--json"]
    code, said, _ = stemma(*arguments, "--shots", "0", "--shots", "2", "--out", tmp_path / "out")
    assert not code
    told = [json.loads(line) for line in said.splitlines()]
    assert [one["costs"]["shots"] for one in told] == [0, 2]
    _, table, curves = read_report(tmp_path / "out/report.html").sections[0].parts
    assert [row[0] for row in table.rows] == ["0", "2"]
    for series in curves.series:
        assert list(series.x) == [0, 2]
        assert list(series.y) == [one["metrics"][series.label]["mean"] for one in told]
        half = 1.96 * told[1]["metrics"][series.label]["error"]
        assert series.high[1] - series.y[1] == pytest.approx(half)
    for shots, one in zip((0, 2), told, strict=True):
        results = json.loads((tmp_path / f"out/shots-{shots}/results.json").read_text())
        assert results["metrics"] == one["metrics"]
