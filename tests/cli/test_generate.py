"""`stemma generate`, in this process but through the real entry point."""

import json
import sys

import pytest
import torch

from stemma.cli import main
from stemma.data.tokenizers import train_tokenizer
from stemma.families import load, save
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.inference import compiled_step
from stemma.inference.generate import generate


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the lazy dog jumps over the quick brown fox " * 50], "bpe", 289)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=289, context=64, layers=2, hidden=32, heads=4))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    path = tmp_path_factory.mktemp("models") / "small"
    save(model, tokenizer, path)
    return path


@pytest.fixture
def run(stemma, directory):
    """run(*arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        return stemma("generate", directory, *arguments, stdin=stdin)

    return call


def expected(directory, tokenizer, prompt, **options):
    return generate(load(directory), tokenizer, prompt, **options)


def test_the_continuation_goes_to_standard_output(run, directory, tokenizer):
    options = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.95, "seed": 4}
    text = expected(directory, tokenizer, "the dog", **options)[0].text
    assert run("--prompt", "the dog", "-n", "12", "--seed", "4") == (0, text + "\n", "")


def test_all_options_arrive(run, directory, tokenizer):
    options = {
        "max_new_tokens": 15,
        "temperature": 1.3,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "seed": 3,
        "samples": 2,
        "stop": ["e\n", "\t"],
        "log_probabilities": True,
    }
    arguments = ["--max-new-tokens=15", "--temperature=1.3", "--top-k=40", "--top-p=0.9", "--min-p=0.01", "--seed=3"]
    arguments += ["--repetition-penalty=1.2", "--samples=2", r"--stop=e\n", r"--stop=\t", "--log-probabilities"]
    code, out, _ = run("-p", "fox", "-p", "the", *arguments, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 4
    for line, text in zip(lines, expected(directory, tokenizer, ["fox", "the"], **options), strict=True):
        assert (line["prompt"], line["sample"], line["seed"]) == (["fox", "the"][text.prompt], text.sample, 3)
        assert (line["text"], line["tokens"], line["finish_reason"]) == (text.text, text.tokens, text.finish_reason)
        assert line["log_probabilities"] == pytest.approx(text.log_probabilities, abs=1e-4)


def test_prompts_from_a_file_and_from_standard_input(run, tmp_path):
    (tmp_path / "prompt.txt").write_text("the quick\n")
    by_option = run("--prompt", "the quick", "--temperature", "0", "-n", "5")
    assert by_option[0] == 0 and by_option[1].strip()
    assert run("--file", str(tmp_path / "prompt.txt"), "--temperature", "0", "-n", "5") == by_option
    assert run("--file", "-", "--temperature", "0", "-n", "5", stdin=b"the quick\n") == by_option
    assert run("--temperature", "0", "-n", "5", stdin=b"the quick\n") == by_option


def test_beams(run, directory, tokenizer):
    texts = expected(directory, tokenizer, "the dog", max_new_tokens=6, beams=3, samples=2)
    code, out, _ = run("-p", "the dog", "-n", "6", "--beams", "3", "--samples", "2", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["tokens"] for line in lines] == [text.tokens for text in texts]
    assert [line["score"] for line in lines] == pytest.approx([text.score for text in texts], abs=1e-4)


def test_log_probabilities_are_listed_token_by_token(run, directory, tokenizer):
    text = expected(directory, tokenizer, "the", max_new_tokens=3, temperature=0, log_probabilities=True)[0]
    _, out, _ = run("-p", "the", "-n", "3", "--temperature", "0", "--log-probabilities")
    lines = out.splitlines()[-3:]
    assert [line.split(maxsplit=1)[1] for line in lines] == [repr(tokenizer.decode([token])) for token in text.tokens]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(text.log_probabilities, abs=1e-3)


def test_at_a_terminal_the_prompt_is_shown_and_control_characters_are_not(run, monkeypatch, capsys):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    code, out, err = run("-p", "the \x1b[2Jdog", "-n", "4", "--seed", "1")
    assert code == 0
    assert "the \ufffd[2Jdog" in out and "\x1b[2J" not in out
    assert "4 tokens" in err and "seed 1" in err and "length" in err


def test_bfloat16(run):
    code, out, _ = run("-p", "the", "-n", "20", "--dtype", "bfloat16", "--device", "cpu")
    assert code == 0 and out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "x", "--file", "y"), "--prompt and --file exclude each other"),
        (("--file", "missing.txt"), "missing.txt: No such file or directory"),
        (("--prompt", "the " * 100), "prompt 1 has 101 tokens, the model's context 64"),
        (("--prompt", "x", "--dtype", "float23"), "--dtype float23 (did you mean 'float32'?)"),
        (("--prompt", "x", "--device", "gpu"), "--device gpu: "),
        (("--prompt", "x", "--temperature", "-1"), "temperature is -1.0"),
        (("--prompt", "x", "--beams", "2", "--temperature", "0.5"), "beams search the likeliest text"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_bad_utf8_on_standard_input(run):
    code, _, err = run(stdin=b"abc\xff")
    assert code == 2 and "standard input: not UTF-8 at byte 3" in err


def test_a_missing_model_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["stemma", "generate", "runs/none-such", "--prompt", "x"])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "runs/none-such" in error


def test_compiled_steps_write_the_same(run, directory, tokenizer, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiled_step, "_compiled", lambda: compiled.append(1) or compiled_step._step)
    text = expected(directory, tokenizer, "the dog", max_new_tokens=20, temperature=0)[0].text
    assert run("--prompt", "the dog", "-n", "20", "--temperature", "0", "--compile") == (0, text + "\n", "")
    assert len(compiled) == 19
