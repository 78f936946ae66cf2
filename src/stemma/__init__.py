"""stemma: the family tree of language models, every branch of it running."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is asked for, so that `import stemma` and the command
# line's --help do not wait for PyTorch.
_EXPORTS = {
    "load": "stemma.families",
    "save": "stemma.families",
    "load_tokenizer": "stemma.data.tokenizers",
    "generate": "stemma.inference.generate",
    "Engine": "stemma.inference.engine",
    "Request": "stemma.inference.requests",
    "predict": "stemma.finetuning.predicting",
}

__all__ = ["Engine", "Request", "__version__", "generate", "load", "load_tokenizer", "predict", "save"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'stemma' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
