"""`stemma finetune` through the real entry point: every task from its files, and one line for what is wrong."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from tiny_models import WORDS, directory_of

import stemma
from stemma.training import progress
from stemma.training.progress import ConsoleDisplay

STEPS = ("training.steps=2", "training.batch=4", "data.longest_target=8")
PARTS = [" ".join(WORDS.split()[start : start + 4]) for start in range(0, 40, 4)]


@pytest.fixture
def run(stemma: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) -> (exit code, standard output, standard error)."""
    return partial(stemma, "finetune")


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


def labelled(folder: Path, name: str = "train", labels: str = "good bad") -> str:
    rows = [f"{labels.split()[number % 2]},{part}" for number, part in enumerate(PARTS)]
    (folder / f"{name}.csv").write_text("\n".join(["kind,sentence", *rows]) + "\n")
    return str(folder / f"{name}.csv")


def test_a_classification_prints_what_it_reached_and_again_does_nothing(run, tmp_path: Path) -> None:
    model, train, out = str(directory_of("bert", tmp_path)), labelled(tmp_path), str(tmp_path / "run")
    arguments = (model, *STEPS, "--train", train, "--dev", train, "--test", train, "--text", "sentence")
    arguments += ("--label", "kind", "--out", out)
    code, printed, error = run(*arguments, "--json")
    assert code == 0 and "learning rate" in error
    results = json.loads(printed)
    assert results["reason"] == "finished" and results["out"] == out and results["steps"] == 2
    assert results["dev"] == results["test"] and results["test"]["examples"] == 10
    assert set(results["dev"]["metrics"]) == {"accuracy", "f1", "macro_f1", "matthews"}
    assert results["dev"]["majority"] == 0.5
    before = (Path(out) / "best" / "model.safetensors").read_bytes()
    code, printed, _ = run(*arguments)
    assert (
        code == 0
        and "accuracy" in printed
        and "majority" in printed
        and "test: 10" in printed
        and f"best weights: {out}" in printed
    )
    assert "10 texts of dev stand in train" in printed
    assert (Path(out) / "best" / "model.safetensors").read_bytes() == before


def test_data_sets_of_the_library_datasets(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.ClassLabel(names=["bad", "good"])
    whole = datasets.Dataset.from_dict({"sentence": PARTS, "kind": [number % 2 for number in range(len(PARTS))]})
    whole = whole.cast_column("kind", names)
    splits = datasets.DatasetDict(train=whole.select(range(6)), validation=whole.select(range(6, 10)))
    splits.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split, part in splits.items():
        part.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    model, results = str(directory_of("bert", tmp_path)), []
    for form in ("saved", "parquet"):
        out, data = str(tmp_path / f"run-{form}"), str(tmp_path / form)
        arguments = (model, *STEPS, "--train", data, "--text", "sentence", "--label", "kind", "--out", out, "--json")
        code, printed, error = run(*arguments, "--dev", f"{data}:validation")
        assert code == 0 and "6 examples, 4 to choose" in error and "bad 3, good 3" in error
        results.append(json.loads(printed)["dev"])
        assert json.loads((Path(out) / "best" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    assert results[0] == results[1] and results[0]["examples"] == 4
    code, _, error = run(*arguments, "--dev", data)
    assert code == 2 and f"{data}: which of its splits? Expected one behind it, such as {data}:validation" in error


def test_tags_and_answers_of_data_sets(run, tmp_path: Path) -> None:
    import datasets

    tags = datasets.Features({"tokens": [datasets.Value("string")], "tags": [datasets.ClassLabel(names=["O", "B-X"])]})
    columns = {"tokens": [part.split() for part in PARTS], "tags": [[0, 1] * 2] * len(PARTS)}
    datasets.Dataset.from_dict(columns, tags).save_to_disk(tmp_path / "tagged")
    answers = [{"text": [part.split()[0]], "answer_start": [0]} for part in PARTS]
    columns = {"question": ["who"] * len(PARTS), "context": PARTS, "answers": answers}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "asked")
    model = str(directory_of("bert", tmp_path))
    for task, data, options in (
        ("tagging", "tagged", ["--text", "tokens", "--label", "tags"]),
        ("answering", "asked", []),
    ):
        data, out = str(tmp_path / data), str(tmp_path / f"run-{task}")
        arguments = (model, *STEPS, "--train", data, "--dev", data, "--task", task, "--out", out, *options, "--json")
        code, printed, error = run(*arguments)
        assert code == 0, error
        assert json.loads(printed)["dev"]["examples"] == len(PARTS)


def test_an_interrupted_run_says_so_and_goes_on(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(ConsoleDisplay):
        def step(self, step: int, values: Mapping[str, float]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    model, train = str(directory_of("bert", tmp_path)), labelled(tmp_path)
    arguments = (model, *STEPS, "--train", train, "--dev", train, "--text", "sentence", "--label", "kind")
    arguments += ("--out", str(tmp_path / "run"), "--json")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "ConsoleDisplay", Interrupting)
        code, printed, _ = run(*arguments)
    assert code == 128 + signal.SIGTERM
    assert json.loads(printed) == {"reason": "interrupted", "out": str(tmp_path / "run")}
    code, printed, error = run(*arguments)
    assert code == 0 and "resuming   from step 1" in error and json.loads(printed)["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--label", "knd"], "train.csv, line 2: no field 'knd'"),
        (["--dev", "dev.csv"], "dev.csv, line 3: unknown label 'fine'; the labels of the training set are: bad, good"),
        (["--dev", "nowhere.csv"], "nowhere.csv: cannot be read (No such file or directory)"),
        (["training.epoks=2"], "training.epoks: unknown key (did you mean 'epochs'?)"),
        (["task.metric=acc"], "task.metric: no metric 'acc' here (did you mean 'accuracy'?)"),
        (["task.formulation=cloze"], "task.formulation: a BERT has no 'cloze'"),
        (["data.dev=0.99"], "nothing would remain: a share of 0.99 of 10 examples"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(
    run, changes: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory_of("bert", tmp_path)
    labelled(tmp_path)
    labelled(tmp_path, "dev", "good fine")
    given = {"--train": "train.csv", "--text": "sentence", "--label": "kind", "--out": "run"}
    if not changes[0].startswith("data.dev"):
        given["--dev"] = "train.csv"
    given |= {changes[0]: changes[1]} if len(changes) == 2 else {}
    overrides = changes if len(changes) == 1 else []
    code, printed, error = run("bert", *STEPS, *overrides, *(part for pair in given.items() for part in pair))
    assert code == 2 and not printed
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not Path("run/recipe.yaml").exists()


def test_a_mistake_is_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("source,target\na,b\n")
    model, train = str(directory_of("bert", tmp_path)), str(tmp_path / "train.csv")
    code, _, error = run(model, "--train", train, "--dev", train, "--task", "text", "--out", str(tmp_path / "run"))
    assert code != 0 and "a BERT does not write texts" in error
    code, _, error = run(model, "--train", train, "--dev", train, "--task", "tag", "--out", str(tmp_path / "run"))
    assert code != 0 and "task.kind" in error


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("classification", "train.csv", "text,label\nthe dog,a\nun café,b\n"),
        ("classification", "train.tsv", "text\tlabel\nthe dog\ta\nun café\tb\n"),
        ("classification", "train.txt", "a the dog\nb un café\n"),
        ("classification", "train.jsonl", '{"text": "the dog", "label": "a"}\n{"text": "un café", "label": "b"}\n'),
        ("choice", "train.csv", "q,choices,label\nthe dog,a,0\nun café,b,0\n"),
        ("tagging", "train.conll", "the O\ndog O\n\ncafé B-X\n"),
        ("text", "train.csv", "source,target\nthe dog,a\nun café,b\n"),
        ("text", "train.de,train.en", "the dog\nun café\n"),
        ("answering", "train.json", '{"data": [{"title": "café"}]}'),
    ],
)
def test_a_file_that_is_not_utf_8_is_one_line(
    run, encoding: str, task: str, name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory_of("bert", tmp_path)
    for file in name.split(","):
        Path(file).write_bytes(content.encode(encoding))
    code, printed, error = run("bert", "--train", name, "--task", task, "--out", "run")
    bad = content.encode(encoding)
    place, byte = (bad.index(b"\xe9"), "0xe9") if encoding == "latin-1" else (0, "0xff")
    assert code == 2 and not printed and error.count("\n") == 1
    assert error.startswith(f"error: {name.split(',')[0]}: not UTF-8 at byte {place} ({byte}")
    assert not Path("run").exists()
