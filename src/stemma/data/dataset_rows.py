"""Labelled rows of data sets that the library `datasets` reads: of the hub, saved by it, or a folder of tables.

hf:owner/name[:config][:split]    of the hub; cached by the library, so that the next time it need not be reached
FOLDER[:config][:split]           what `save_to_disk` wrote, or Parquet, CSV or JSONL files as they lie on the hub
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stemma.data.hub_datasets import PREFIX, first_line, import_datasets, taken_apart
from stemma.errors import InputError, closest


def is_dataset(what: str | Path) -> bool:
    """Return whether `what` names a data set of the hub, or a folder."""
    what = str(what)
    if what.startswith(PREFIX) or Path(what).expanduser().is_dir():
        return True
    return not Path(what).exists() and Path(what.split(":")[0]).expanduser().is_dir()


def needs_split(what: str | Path) -> bool:
    """Return whether a data set has several splits and none is named.

    Raises:
        InputError: it cannot be read.
    """
    found, split = loaded(str(what))
    return split is None and isinstance(found, Mapping) and len(found) > 1


def dataset_rows(what: str | Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the columns of each row by name, and its origin; the numbers of classes that have names as these names.

    Without a split it is "train", or the only one.

    Raises:
        InputError: it cannot be read, or has no such split.
    """
    what = str(what)
    found = split_of(what)
    named = {name: names for name, feature in found.features.items() if (names := _naming(feature)) is not None}
    number = 0
    try:
        for number, row in enumerate(found, start=1):  # noqa: B007 (it is told after an error)
            for name, rename in named.items():
                row[name] = rename(row[name])
            yield row, f"{what}, row {number}"
    except (OSError, ValueError, ImportError) as error:  # what decoding a column raises
        raise InputError(f"{what}: cannot be read after row {number} ({first_line(error)})") from None


def split_of(what: str) -> Any:
    """Return a `datasets.Dataset`: the split that is named, "train", or the only one.

    Raises:
        InputError: it cannot be read, or has no such split.
    """
    return chosen(what, *loaded(what))


def chosen(what: str, found: Any, split: str | None) -> Any:
    """Return what `split_of` does, of what `loaded` gave."""
    if not isinstance(found, Mapping):
        if split is not None:
            raise InputError(f"{what}: no split '{split}'; the data set is not divided")
        return found
    wanted = split or (next(iter(found)) if len(found) == 1 else "train")
    if wanted not in found:
        raise InputError(f"{what}: no split '{wanted}'{closest(wanted, found)}; there are: {', '.join(found)}")
    return found[wanted]


def loaded(what: str) -> tuple[Any, str | None]:
    """Return a `datasets.Dataset`, or a mapping of them by their splits; and the split that is named."""
    datasets = import_datasets()
    name, config, split = _taken_apart(what)
    folder = Path(name).expanduser()
    try:
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(str(folder)), split or config
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, config), split
    except Exception as error:  # whatever the library, and the network library beneath it, raises
        reason = " ".join(str(error).split())[:300]  # which configurations there are is not in the first line
        raise InputError(f"{what}: cannot be read as a data set ({reason})") from None


def _taken_apart(what: str) -> tuple[str, str | None, str | None]:
    if not what.startswith(PREFIX) and Path(what).expanduser().is_dir():
        return what, None, None  # its name may have a colon
    return taken_apart(what)


def _naming(feature: Any) -> Callable[[Any], Any] | None:
    """Return what puts names for classes into a column's values; None: it has no such classes."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        # Test sets of the hub whose labels are secret have -1.
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    rename = None if inner is None else _naming(inner)
    return None if rename is None else lambda values: None if values is None else [rename(value) for value in values]
