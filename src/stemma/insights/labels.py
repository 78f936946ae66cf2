"""Labelled texts divided once, into files for training, for choosing the best weights and for testing."""

import json
from collections.abc import Sequence
from pathlib import Path

from stemma.data.content_hashes import digest
from stemma.data.labelled import LabelledData, read_labelled, split_by_hash
from stemma.files import write_whole
from stemma.insights.python_labels import python_labels

PARTS = ("train", "dev", "test")
_TEST, _DEV = 0.4, 0.1  # shares of the labelled examples


def part_of(folder: Path, part: str) -> Path:
    """Return the file of a part, JSONL with `text` and `label`."""
    return folder / f"labels-{part}.jsonl"


def labelled(source: str, *, text: str = "text", label: str = "label", each: int) -> LabelledData:
    """Return a table of labelled texts in an order that depends on their content only.

    Args:
        source: a file with the columns `text` and `label`; or "python", at most `each` of a class (see
            `python_labels`).
    Raises:
        InputError: the table cannot be read.
    """
    if source == "python":
        return python_labels(each=each)
    table = read_labelled(Path(source), text=text, label=label)
    # Tables are often sorted by label.
    return _selected(table, sorted(range(len(table)), key=lambda index: digest([*table.texts[index]])))


def divide_labelled(data: LabelledData, folder: Path, *, examples: int) -> None:
    """Write the parts: `examples` to train on, one of each label among them."""
    rest, test = split_by_hash(data, _TEST, seed=1)
    train, dev = split_by_hash(rest, _DEV / (1 - _TEST), seed=2)
    # A label that is not in the rest cannot be learned.
    firsts = {label: index for index, label in reversed(list(enumerate(train.labels)))}
    others = [index for index in range(len(train)) if index not in firsts.values()]
    train = _selected(train, sorted([*firsts.values(), *others[: max(examples - len(firsts), 0)]]))
    for name, part in (("train", train), ("dev", dev), ("test", test)):
        known = [index for index, label in enumerate(part.labels) if label in firsts]
        _write(_selected(part, known), part_of(folder, name))


def _selected(data: LabelledData, indices: Sequence[int]) -> LabelledData:
    return LabelledData([data.texts[i] for i in indices], [data.labels[i] for i in indices], data.label_names)


def _write(data: LabelledData, path: Path) -> None:
    names = data.label_names
    lines = [
        json.dumps({"text": texts[0], "label": names[int(label)]})
        for texts, label in zip(data.texts, data.labels, strict=True)
    ]
    with write_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
