"""Word vectors on the command line: train, interrupt, go on, look into, evaluate; through the real entry point."""

import json
import signal
import sys

import numpy as np
import pytest
from safetensors import SafetensorError

from stemma.data.vectors import WordVectors
from stemma.training.progress import ConsoleDisplay

WORD2VEC = """\
family: word2vec
model: {dimensions: 16, window: 3, subsample: 0}
vocabulary: {min_count: 2}
data: {source: SOURCE}
training: {epochs: 3, threads: 1, learning_rate: 0.2}
output: {formats: [word2vec, word2vec-binary, glove]}
"""
GPT = """\
family: gpt
model: {layers: 1, hidden: 16, heads: 2, context: 16}
tokenizer: {kind: bpe, vocabulary: 280}
data: {source: SOURCE, documents: line, held_out: 0.01}
training: {steps: 2, batch: 2, learning_rate: 0.01}
evaluation: {tokens: 100}
"""
GLOVE = """\
family: glove
model: {dimensions: 16, window: 4, x_max: 10}
data: {source: SOURCE}
training: {epochs: 4, threads: 1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe(content) -> path, for a text of sentences about one of four topics each."""
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    topics = generator.integers(4, size=3000)
    lines = (" ".join(f"t{topic}w{number}" for number in generator.integers(8, size=10)) for topic in topics)
    (tmp_path / "text.txt").write_text("\n".join(lines))

    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_text(content.replace("SOURCE", str(tmp_path / "text.txt")))
        return path

    return write


@pytest.fixture
def run(stemma):
    """run(*arguments) -> (exit code, standard output, standard error)."""

    def call(*arguments):
        return stemma(*arguments)

    return call


@pytest.mark.parametrize("content", [WORD2VEC, GLOVE], ids=["word2vec", "glove"])
def test_from_text_to_neighbours(recipe, run, tmp_path, content):
    code, out, err = run("pretrain", recipe(content), "--out", "run", "--json")
    result = json.loads(out)
    assert code == 0 and result["reason"] == "finished" and result["words"] == 32 and result["read"] == 30_000
    assert result["losses"] == sorted(result["losses"], reverse=True) and len(result["losses"]) == result["epochs"]
    assert "corpus " in err and "30,000 words" in err
    assert not {"training_state.safetensors", "cooccurrence.bin"} & {path.name for path in (tmp_path / "run").iterdir()}
    code, out, _ = run("embed", "neighbours", "run", "t1w0", "t3w5", "--top", "7", "--json")
    found = json.loads(out)["neighbours"]
    assert code == 0 and [len(near) for near in found.values()] == [7, 7]
    if content is WORD2VEC:  # GloVe learns nothing from pairs that never come together, which here tell the topics
        assert all({near[:2] for near, _ in found[word]} == {word[:2]} for word in ("t1w0", "t3w5"))
    code, out, _ = run("embed", "neighbours", "run", "t1w0")
    assert code == 0 and found["t1w0"][0][0] in out
    code, out, _ = run("embed", "analogy", "run", "t1w0", "t1w1", "t2w0", "--top", "3", "--json")
    expected = WordVectors.load(tmp_path / "run").analogy("t1w0", "t1w1", "t2w0", 3)
    assert code == 0 and json.loads(out)["answers"] == [list(answer) for answer in expected]
    code, _, err = run("evaluate", "run", "text.txt")
    assert code == 2 and "run: vectors of words (" in err
    code, out, _ = run("pretrain", recipe(content), "--out", "run")  # again: nothing to do
    assert code == 0 and "finished already" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == content.split()[1] and config["losses"] == result["losses"]


def test_other_formats_hold_the_same_vectors(recipe, run, tmp_path):
    assert run("pretrain", recipe(WORD2VEC), "--out", "run")[0] == 0
    native = WordVectors.load(tmp_path / "run")
    for name in ("vectors.word2vec.txt", "vectors.bin", "vectors.glove.txt"):
        other = WordVectors.load(tmp_path / "run" / name)
        assert other.words == native.words
        np.testing.assert_allclose(other.matrix, native.matrix, atol=1e-6)


def test_evaluate(recipe, run, tmp_path):
    assert run("pretrain", recipe(WORD2VEC), "--out", "run")[0] == 0
    (tmp_path / "q.txt").write_text(": one\nt0w0 t0w1 t1w0 t1w1\nt0w0 t0w1 t1w0 unknown\n")
    (tmp_path / "s.txt").write_text("t0w0 t0w1 9\nt0w0 t1w1 1\nt0w5 t0w1 8\nt2w0 t1w1 2\nt2w0 unknown 5\n")
    code, out, _ = run("evaluate", "run", "--analogies", "q.txt", "--similarity", "s.txt", "--json")
    result = json.loads(out)
    assert code == 0 and result["words"] == 32
    assert result["analogies"]["q.txt"]["3CosMul"]["total"]["answered"] == 1
    assert result["similarity"]["s.txt"]["known"] == 4 and result["similarity"]["s.txt"]["spearman"] >= 0.8
    code, out, _ = run("evaluate", "run", "--similarity", "s.txt", "--restrict", 4, "--json")
    assert code == 0 and json.loads(out)["words"] == 4
    code, out, _ = run("evaluate", "run/vectors.bin", "--analogies", "q.txt", "--similarity", "s.txt")
    assert code == 0 and "semantic" in out and "s.txt" in out


@pytest.mark.parametrize("content", [WORD2VEC, GLOVE], ids=["word2vec", "glove"])
def test_interrupted_it_goes_on_to_the_same_bits(recipe, run, tmp_path, monkeypatch, content):
    path = recipe(content)
    say = ConsoleDisplay.say

    def interrupt(display, message):
        say(display, message)
        if message.startswith("epoch 2/"):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(ConsoleDisplay, "say", interrupt)
        code, out, _ = run("pretrain", path, "--out", "stopped")
    assert code == 128 + signal.SIGINT and "goes on from here" in out
    names = {item.name for item in (tmp_path / "stopped").iterdir()}
    assert "training_state.safetensors" in names and not {"config.json", "model.safetensors"} & names
    code, out, _ = run("pretrain", path, "--out", "stopped", "--resume")
    assert code == 0 and "resuming   from epoch 3" in out and "epoch 2/" not in out
    assert run("pretrain", path, "--out", "whole")[0] == 0
    one, other = (WordVectors.load(tmp_path / name) for name in ("stopped", "whole"))
    np.testing.assert_array_equal(one.matrix, other.matrix)


def test_a_full_disk_is_one_clear_line(recipe, run, tmp_path, monkeypatch):
    def full(tensors, path, metadata=None):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("stemma.data.vectors.save_file", full)
    for epochs, name in ((1, "model"), (3, "training_state")):  # the vectors themselves, the state after an epoch
        code, _, told = run("pretrain", recipe(WORD2VEC), f"training.epochs={epochs}", "--out", f"run-{epochs}")
        assert code == 1 and f"{name}.safetensors: Error while serializing: No space left" in told
        assert not (tmp_path / f"run-{epochs}" / f"{name}.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("windwo: 3", (), "recipe.yaml:2: model.windwo: unknown key (did you mean 'window'?)"),
        ("7: 3", (), "recipe.yaml:2: model.7: unknown key, expected one of dimensions, architecture"),
        ("window: 3", ("model=7",), "model: "),
        ("window: 0", (), "recipe.yaml:2: model: window is 0, expected at least 1"),
        ("architecture: cbw", (), "recipe.yaml:2: model.architecture: input should be 'skip-gram' or 'cbow'"),
        ("window: 3", ("training.steps=3",), "command line: training.steps: unknown key"),
        ("window: 3", ("vocabulary.min_count=99999",), "no word occurs 99999 times"),
        ("window: 3", ("data.source=txt.text",), "txt.text: no such file"),
        ("window: 3", ("--resume",), "there is no run to resume"),
    ],
)
def test_mistakes(recipe, run, tmp_path, change, arguments, message):
    code, out, err = run("pretrain", recipe(WORD2VEC.replace("window: 3", change)), "--out", "run", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_run_of_another_recipe_is_kept(recipe, run, tmp_path):
    path = recipe(WORD2VEC)
    assert run("pretrain", path, "--out", "run")[0] == 0
    code, _, err = run("pretrain", path, "model.window=2", "--out", "run")
    assert code == 2 and "model.window: 2, 3" in err
    assert run("pretrain", path, "training.threads=2", "--out", "run")[0] == 0
    code, out, _ = run("pretrain", path, "model.window=2", "--out", "run", "--overwrite")
    assert code == 0 and "finished already" not in out
    code, _, err = run("pretrain", "glove/tiny", "--out", "run")
    assert code == 2 and "family: glove, word2vec" in err


def test_overwriting_leaves_nothing_of_another_family(recipe, run, tmp_path):
    def files(content, directory, *options):
        assert run("pretrain", recipe(content), "--out", directory, *options)[0] == 0
        return {str(path.relative_to(tmp_path / directory)) for path in (tmp_path / directory).rglob("*")}

    gpt, vectors = files(GPT, "run"), files(WORD2VEC, "fresh")
    assert "tokenizer.json" in gpt - vectors and "vectors.bin" in vectors - gpt
    (tmp_path / "run" / "vectors.mine.txt").touch()  # no run wrote it
    assert files(WORD2VEC, "run", "--overwrite") == vectors | {"vectors.mine.txt"}
    for name in ("training_state.safetensors", "cooccurrence.bin"):  # as a run that was interrupted leaves them
        (tmp_path / "run" / name).touch()
    assert files(GPT, "run", "--overwrite") == gpt | {"vectors.mine.txt"}


def test_dry_run_writes_nothing(recipe, run, tmp_path):
    code, out, _ = run("pretrain", recipe(GLOVE), "--out", "run", "--dry-run", "--json")
    assert code == 0 and json.loads(out) == {"words": 30_000, "vocabulary": 32, "epochs": 4}
    code, out, _ = run("pretrain", recipe(GLOVE), "training.epochs=9", "--out", "run", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["epochs"] == 9
    assert not (tmp_path / "run").exists()


def test_unknown_words_and_models(recipe, run, tmp_path):
    (tmp_path / "v.txt").write_text("file 1 2\nfiles 1 3\n")
    code, _, err = run("embed", "neighbours", "v.txt", "flie")
    assert code == 2 and "did you mean 'file'?" in err
    code, _, err = run("embed", "neighbours", "none", "file")
    assert code == 2 and "none: cannot be read" in err
    (tmp_path / "folder").mkdir()
    code, _, err = run("evaluate", "folder", "--similarity", "v.txt")
    assert code == 2 and "expected" in err


def test_without_numba_there_is_one_clear_line(recipe, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in ("stemma.data.compiled", "stemma.families.word2vec.kernels", "stemma.families.word2vec.sampling"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr("stemma.families.word2vec.kernels", raising=False)
    monkeypatch.delattr("stemma.families.word2vec.sampling", raising=False)
    code, _, err = run("pretrain", recipe(WORD2VEC), "--out", "run")
    assert code == 2 and "error: word vectors are trained by compiled loops: pip install 'stemma-lm[vectors]'" in err
