"""`stemma finetune` through the real entry point: every task from its files, and one line for what is wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import WORDS, directory_of

import stemma
from stemma.cli import main

STEPS = ("training.steps=2", "training.batch=4", "data.longest_target=8")
PARTS = [" ".join(WORDS.split()[start : start + 4]) for start in range(0, 40, 4)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) -> (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stemma", "finetune", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return call


@pytest.mark.parametrize(
    ("family", "task", "metric"),
    [
        ("bert", "tagging", "f1"),
        ("t5", "text", "bleu"),
        ("glm", "choice", "accuracy"),
        ("gpt", "answering", "f1"),
    ],
)
def test_every_task_from_its_files(run, family: str, task: str, metric: str, tmp_path: Path) -> None:
    train = tmp_path / "train"
    options: list[str] = []
    if task == "tagging":
        train.write_text("\n\n".join("\n".join(f"{word} B-X" for word in part.split()) for part in PARTS))
        asked = [["the", "dog"]]
    elif task == "text":
        train.write_text("\n".join(PARTS))
        train, asked = Path(f"{train},{train}"), ["the dog"]
    elif task == "choice":
        train = tmp_path / "train.csv"
        train.write_text("q,a,b,right\n" + "".join(f"{part},red,blue,A\n" for part in PARTS))
        options, asked = ["--question", "q", "--choices", "a,b", "--label", "right"], [("who", ["red", "blue"])]
    else:
        answer = [{"text": part.split()[0], "answer_start": 0} for part in PARTS]
        paragraphs = [
            {"context": part, "qas": [{"id": part, "question": "who", "answers": [one]}]}
            for part, one in zip(PARTS, answer, strict=True)
        ]
        train.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        asked = [("who", "the dog")]
    model, out = str(directory_of(family, tmp_path)), str(tmp_path / "run")
    arguments = ("--train", str(train), "--dev", str(train), "--task", task, "--out", out, *options, "--json")
    code, printed, error = run(model, *STEPS, *arguments)
    assert code == 0, error
    results = json.loads(printed)
    assert metric in results["dev"]["metrics"]
    assert ("signatures" in results) == (task == "text")
    assert len(stemma.predict(Path(out) / "best", asked)) == 1


def test_a_mistake_is_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("source,target\na,b\n")
    model, train = str(directory_of("bert", tmp_path)), str(tmp_path / "train.csv")
    code, _, error = run(model, "--train", train, "--dev", train, "--task", "text", "--out", str(tmp_path / "run"))
    assert code != 0 and "a BERT does not write texts" in error
    code, _, error = run(model, "--train", train, "--dev", train, "--task", "tag", "--out", str(tmp_path / "run"))
    assert code != 0 and "task.kind" in error
