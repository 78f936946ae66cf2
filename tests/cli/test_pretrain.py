"""`stemma pretrain` from text to a directory that loads, in this process but through the real entry point."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import stemma

RECIPE = """\
family: gpt
model: {layers: 1, hidden: 16, heads: 2, context: 16, dropout: 0.1}
tokenizer: {kind: bpe, vocabulary: 280}
data: {source: SOURCE, documents: paragraph, held_out: 0.2}
training: {steps: 6, batch: 4, learning_rate: 0.01}
evaluation: {every: 3}
output: {save_every: 2, log_every: 1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    generator = random.Random(0)
    words = ["stemma", "tree", "text", "line", "copy", "leaf", "root"]
    paragraphs = [" ".join(generator.choices(words, k=40)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(paragraphs))
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("SOURCE", str(tmp_path / "text.txt")))
    return path


@pytest.fixture
def run(stemma):
    """run(*arguments) -> (exit code, standard output, standard error), on one thread."""

    def call(*arguments):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return stemma("pretrain", *arguments)
        finally:
            torch.set_num_threads(threads)

    return call


def test_from_text_to_a_directory_that_loads_everywhere(recipe, run, tmp_path):
    out = tmp_path / "run"
    code, said, _ = run(recipe, "--out", out)
    assert code == 0
    assert "held-out loss" in said and "bits per byte" in said and f"stemma generate {out}" in said
    ours = stemma.load(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens = torch.tensor([tokenizer("stemma tree text")["input_ids"]])
    assert tokens.tolist() == [stemma.load_tokenizer(out).encode("stemma tree text")]
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["training"]["steps"] == 6 and written["model"]["norm"] == "pre"
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert (out / "best" / "model.safetensors").exists()


def test_bits_per_byte_are_those_of_the_published_model_on_the_raw_text(recipe, run, tmp_path):
    code, said, _ = run(recipe, "data.held_out=" + str(tmp_path / "other.txt"), "--out", tmp_path / "run", "--dry-run")
    assert code == 2  # no such file
    (tmp_path / "other.txt").write_text("tree leaf\n\nröot text copy")
    code, said, _ = run(recipe, f"data.held_out={tmp_path / 'other.txt'}", "--out", tmp_path / "run", "--json")
    result = json.loads(said)
    assert code == 0 and result["reason"] == "finished" and result["step"] == 6
    tokenizer = stemma.load_tokenizer(tmp_path / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run").requires_grad_(False)
    bits = 0.0
    for text in ("tree leaf", "röot text copy"):
        tokens = torch.tensor([[tokenizer.separator, *tokenizer.encode(text)]])
        log_probabilities = model(tokens).logits.log_softmax(-1)[0, :-1]
        bits -= float(log_probabilities.gather(1, tokens[0, 1:, None]).sum()) / torch.log(torch.tensor(2.0)).item()
    raw = len(b"tree leaf") + len("röot text copy".encode())
    assert result["evaluation"]["bits_per_byte"] == pytest.approx(bits / raw, rel=1e-4)


def test_the_same_command_goes_on_and_another_is_refused(recipe, run, tmp_path):
    out = tmp_path / "run"
    run(recipe, "--out", out)
    code, said, _ = run(recipe, "--out", out)
    assert code == 0 and "from step 6" in said
    code, _, error = run(recipe, "training.lr=0.5", "--out", out)
    assert code == 2 and "training.learning_rate: 0.5, 0.01" in error and error.count("\n") == 1
    code, _, error = run(recipe, "--out", tmp_path / "new", "--resume")
    assert code == 2 and "no run to resume" in error
    code, _, _ = run(recipe, "training.lr=0.5", "--out", out, "--overwrite")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.stepz=3"], "'steps'"),
        (["training.length=17"], "context of 16"),
        (["training.length=16", "model.context=16", "data.source=nowhere.txt"], "nowhere.txt"),
        (["training.batch=none"], "training.batch"),
        (["model.vocabulary=256"], "256 is too small for the tokenizer"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(recipe, run, tmp_path, arguments, words):
    code, _, error = run(recipe, *arguments, "--out", tmp_path / "run")
    assert code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_dry_run_says_what_would_be_done_and_writes_nothing(recipe, run, tmp_path):
    code, said, _ = run(recipe, "--out", tmp_path / "run", "--dry-run", "--json")
    summary = json.loads(said)
    assert code == 0 and not (tmp_path / "run").exists()
    # V*d + context*d + 12 d^2 + 13 d + 2 d
    assert summary["parameters"] == summary["vocabulary"] * 16 + 16 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16
    assert summary["tokens"] == 6 * 4 * 16
    assert summary["documents"] + summary["held_out_documents"] == 60


def test_epochs_decide_the_number_of_steps(recipe, run, tmp_path):
    once = json.loads(run(recipe, "training.epochs=1", "--dry-run", "--json")[1])
    twice = json.loads(run(recipe, "training.epochs=2", "--dry-run", "--json")[1])
    assert once["steps"] == -(-(once["corpus_tokens"] // 16) // 4)
    assert twice["steps"] == -(-2 * (once["corpus_tokens"] // 16) // 4)


@pytest.mark.slow
def test_a_real_command_that_is_really_killed(recipe, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STEMMA_CACHE": str(tmp_path / "cache")}
    command = [str(Path(sys.executable).parent / "stemma"), "pretrain", str(recipe), "training.steps=80"]

    def start(out):
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], env=environment, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    generator = random.Random(1)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start("killed")
        states, before = tmp_path / "killed" / "training_state", time.monotonic()
        seen = set(states.glob("step-*"))
        while not set(states.glob("step-*")) - seen and time.monotonic() < before + 60:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.5))
        process.send_signal(number)
        assert process.wait(30) in (-number, 128 + number)
    assert start("killed").wait() == 0
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty corpus; expected at least one document that is not white space"),
        ("tree", "nothing would be held out"),
        ("tree " * 8, "the corpus is smaller than one sequence: "),
    ],
)
def test_a_corpus_that_is_too_small_is_named(recipe, run, tmp_path, text, words):
    (tmp_path / "small.txt").write_text(text)
    code, _, error = run(recipe, f"data.source={tmp_path / 'small.txt'}", "--out", tmp_path / "run")
    assert code == 2 and error.startswith(f"error: {tmp_path / 'small.txt'}: {words}") and error.count("\n") == 1
