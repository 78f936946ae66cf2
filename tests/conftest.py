"""The command, in this process but through the real entry point."""

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from stemma.cli import main


@pytest.fixture
def stemma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """stemma(*arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def call(*arguments: Any, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stemma", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return call
