"""The frame of the command: grouped help, unknown verbs, exit codes; through the real entry point."""

import os
import subprocess
import sys
import warnings

import pytest

from stemma import cli
from stemma.cli import VERBS


def stemma(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from stemma.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", **environment},
        timeout=120,
    )


def test_help_shows_every_verb_in_its_panel():
    result = stemma("--help")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    panels = [number for number, line in enumerate(lines) if line.startswith("╭─")]
    for verb, (_, _, panel) in VERBS.items():
        line = next(number for number, text in enumerate(lines) if text.startswith(f"│ {verb} "))
        assert panel in lines[max(number for number in panels if number < line)]


def test_no_argument_is_help():
    assert "Usage" in stemma().stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("pretain",), "no verb 'pretain' (did you mean 'pretrain'?)"),
        (("xyzzy",), "no verb 'xyzzy' (the verbs are: "),
        (("tokenizer", "trian"), "no verb 'trian' (did you mean 'train'?)"),
        (("generate", "no-such-model", "--prompt", "x"), "no-such-model"),
        (("pretrain", "gpt/tinny"), "(did you mean 'gpt/tiny'?)"),
        (("pretrain", "gpt/tiny", "training.setps=3"), "(did you mean 'steps'?)"),
        (("evaluate", "no-such-model"), "no-such-model"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, expected, tmp_path):
    result = stemma(*arguments, STEMMA_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert expected in result.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS])
def test_every_verb_has_help_with_an_example(verb):
    groups = {"tokenizer": ("train", "inspect"), "embed": ("texts", "neighbours", "analogy")}
    commands = [(verb, name) for name in groups[verb]] if verb in groups else [(verb,)]
    for command in commands:
        result = stemma(*command, "--help")
        assert result.returncode == 0 and "Example" in result.stdout


def test_help_does_not_import_the_heavy_libraries():
    code = "import sys; sys.argv = ['stemma', '--help']\nfrom stemma.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'tokenizers', 'datasets', 'numpy') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version():
    from stemma import __version__

    assert stemma("--version").stdout.strip() == f"stemma {__version__}"


def test_a_reader_that_leaves_early_gets_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-c", "from stemma.cli import main; main()", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(timeout=60)


def test_a_full_disk_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device", "vectors.npy")

    monkeypatch.setattr(cli, "build", lambda: full)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'vectors.npy'\n"


def test_a_warning_of_ours_is_one_line_and_others_say_where(monkeypatch, capsys):
    def warn():
        warnings.warn_explicit("3 texts are cut", UserWarning, cli.__file__, 1)
        warnings.warn_explicit("old", UserWarning, "/elsewhere/library.py", 7)

    monkeypatch.setattr(cli, "build", lambda: warn)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *told, **more: print(warnings.formatwarning(*told[:4])))
        cli.main()
    ours, theirs = capsys.readouterr().out.split("\n\n")[:2]
    assert ours == "warning: 3 texts are cut" and theirs.startswith("/elsewhere/library.py:7: UserWarning: old")
