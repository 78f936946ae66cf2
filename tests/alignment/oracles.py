"""Numbers that plain loops in double precision gave (see the README beside them), where they are at hand."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
FILE = PUBLISHED / "reference/ppo/ppo.safetensors"

needs_oracle = pytest.mark.skipif(not FILE.is_file(), reason="the reference numbers are not here")


def oracle(part: str) -> dict[str, Tensor]:
    """Return the tensors of a part ("gae", "whiten", ...) by their names in it, and the mask."""
    tensors = load_file(FILE)
    mine = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
    return {**mine, "mask": tensors["mask"]}
