"""timm, where torchvision cannot be imported: PyPI's torchvision is built for a CUDA build of torch.

timm needs it for data that we do not load with it; its models, its RandAugment and its mixing work without.
"""

import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAMES = ("", ".ops", ".ops.misc", ".models", ".models.feature_extraction", ".transforms", ".transforms.functional")
_NAMES += (".datasets", ".utils")


class _Empty(ModuleType):
    """A module in which every name is a class without anything."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
        return type(name, (), {})


def import_timm() -> Any:
    """Return timm; what stands for torchvision is taken away again, so that nobody else believes it to be there."""
    try:
        import torchvision  # noqa: F401

        names: list[str] = []
    except (ImportError, RuntimeError, OSError):
        names = [f"torchvision{name}" for name in _NAMES]
        for name in names:
            sys.modules[name] = _Empty(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, sys.modules[name])
    try:
        import timm
        import timm.data
        import timm.models
    finally:
        for name in names:
            del sys.modules[name]
    return timm
