"""The package's front door: what it exports, and that it opens at once."""

import subprocess
import sys

import pytest

import stemma


def test_importing_stemma_imports_nothing_heavy() -> None:
    program = "import sys, stemma; stemma.__version__; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_exports() -> None:
    from stemma.families import load

    assert stemma.load is load
    assert {"load", "load_tokenizer", "generate", "__version__"} <= set(dir(stemma))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        stemma.lod  # noqa: B018
