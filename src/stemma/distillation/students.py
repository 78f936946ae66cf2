"""Smaller models to begin with: layers of the teacher, evenly spaced (Sanh et al. 2019, "DistilBERT", section 3), or
random weights of another width."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stemma import families
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError, closest
from stemma.families.directory import resolve

_BLOCK = re.compile(r"^(.*\bblocks)\.(\d+)\.(.*)$")


def kept_layers(teacher: int, student: int) -> list[int]:
    """Return which of a teacher's layers a student begins with: evenly spaced, the first and the last among them.

    Raises:
        InputError: more layers than the teacher has, or none.
    """
    if not 0 < student <= teacher:
        raise InputError(f"layers={student}: the teacher has {teacher}; expected 1 to {teacher}")
    if student == 1:
        return [0]
    return [round(number * (teacher - 1) / (student - 1)) for number in range(student)]


def smaller(teacher: Any, changes: Mapping[str, Any], seed: int = 0) -> tuple[Any, list[int] | None]:
    """Return a student like its teacher but for some fields of the configuration; and which layers it begins with.

    Where nothing but the number of layers is changed, it has the teacher's weights, those of the layers that are named;
    otherwise random ones (None).

    Raises:
        InputError: an unknown field, or a value that the family does not take.
    """
    fields = {field.name for field in dataclasses.fields(teacher.config)}
    for name in changes:
        if name not in fields:
            raise InputError(f"{name}: no field of a {type(teacher).__name__}{closest(name, fields)}")
    branch = families.family_of(teacher)
    kept = kept_layers(teacher.config.layers, changes["layers"]) if set(changes) == {"layers"} else None
    try:
        config = dataclasses.replace(teacher.config, **changes)
    except (TypeError, ValueError) as error:
        raise InputError(f"{', '.join(changes)}: {error}") from error
    torch.manual_seed(seed)
    student = branch.model(config)
    if kept is not None:
        theirs = teacher.state_dict()
        student.load_state_dict({name: theirs[_of_teacher(name, kept)] for name in student.state_dict()})
    return student.eval(), kept


def make_student(teacher: str, changes: Mapping[str, Any], out: Path, seed: int = 0) -> tuple[Any, list[int] | None]:
    """Write `smaller` of a checkpoint, with its tokenizer, to a directory.

    Raises:
        InputError: no such checkpoint, one of whole words (`layers` is not all there is), or see `smaller`.
    """
    directory = resolve(teacher)
    student, kept = smaller(families.load(directory, dtype=torch.float32), changes, seed)
    families.save(student, load_tokenizer(directory), out)
    return student, kept


def _of_teacher(name: str, kept: list[int]) -> str:
    found = _BLOCK.match(name)
    return name if found is None else f"{found[1]}.{kept[int(found[2])]}.{found[3]}"
