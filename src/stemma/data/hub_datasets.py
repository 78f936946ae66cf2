"""Data sets of the Hugging Face hub, read as a stream through the `datasets` library."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data.byte_streams import Count
from stemma.data.content_hashes import digest
from stemma.data.documents import Piece
from stemma.data.readers import missing_field, row_pieces
from stemma.errors import InputError, closest

PREFIX = "hf:"
SPLIT_NAMES = {"train", "validation", "valid", "dev", "test"}


@dataclass(frozen=True)
class HubCorpus:
    """A split of a data set, at the revision that the hub had when it was opened."""

    name: str
    config: str | None
    split: str
    revision: str
    field: str
    size: int = 0  # unknown

    def pieces(self, count: Count) -> Iterator[Piece]:
        """Yield the documents, one a row; `count` is never called, as the size in bytes is unknown."""
        origin = f"{PREFIX}{self.name}"
        row_number = 0
        try:
            rows = import_datasets().load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
            for row_number, row in enumerate(rows, start=1):
                if self.field not in row:
                    raise missing_field(self.field, row, f"{origin}, row {row_number}")
                yield from row_pieces(row[self.field], self.field, f"{origin}, row {row_number}")
        except InputError:
            raise
        except Exception as error:  # whatever the network library beneath raises
            raise InputError(f"{origin}: cannot be read after row {row_number} ({first_line(error)})") from None

    def fingerprint(self, cache: Path, count: Count) -> str:
        """Identifies the content: the data set's revision, and the part of it."""
        return digest(["hub", self.name, self.config or "", self.split, self.revision, self.field])

    def check_unchanged(self) -> None:
        """A revision does not change."""


def open_hub_corpus(what: str, field: str) -> HubCorpus:
    """Open `hf:owner/name[:config][:split]` (see `taken_apart`)."""
    name, config, split = taken_apart(what)
    return HubCorpus(name, config, split or "train", _revision(name), field)


def split_in_folder(what: str) -> Path | list[Path] | None:
    """Return the folder of one split of `hf:FOLDER[:config][:split]` that `save_to_disk` wrote, or of another folder
    the split's files as `datasets` chooses them; None if it is no folder, but of the hub.

    Raises:
        InputError: a folder that is no data set, or has no such split.
    """
    name, config, split = taken_apart(what)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    wanted = split or config or "train"
    if (folder / "state.json").is_file():
        if split or config:
            raise InputError(f"{what}: no split '{wanted}'; the data set is not divided")
        return folder
    if (folder / "dataset_dict.json").is_file():
        _require_split(what, wanted, [path.name for path in sorted(folder.iterdir()) if path.is_dir()])
        return folder / wanted
    try:
        found = import_datasets().load_dataset_builder(str(folder), config).config.data_files
        files = {str(name): list(map(Path, paths)) for name, paths in found.items()}
    except InputError:
        raise
    except Exception as error:  # whatever the library raises
        raise InputError(f"{what}: cannot be read as a data set ({first_line(error)})") from None
    _require_split(what, split or "train", list(files))
    return files[split or "train"]


def _require_split(what: str, split: str, there: list[str]) -> None:
    if split not in there:
        raise InputError(f"{what}: no split '{split}'{closest(split, there)}; there are: {', '.join(there)}")


def taken_apart(what: str) -> tuple[str, str | None, str | None]:
    """Return name, configuration and split of `hf:owner/name[:config][:split]`, None for those that are not there.

    With one part after the name, it is a split if it is named like one.

    Raises:
        InputError: no name, or more parts.
    """
    name, *parts = what.removeprefix(PREFIX).split(":")
    if not name or len(parts) > 2:
        raise InputError(f"{what}: expected {PREFIX}owner/name, {PREFIX}owner/name:config or with :split after that")
    if len(parts) == 1 and parts[0] in SPLIT_NAMES:
        parts = ["", parts[0]]
    config, split = (parts + ["", ""])[:2]
    return name, config or None, split or None


def _revision(name: str) -> str:
    from huggingface_hub import HfApi

    import_datasets()  # say first if the extra is missing
    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # whatever the network library beneath raises
        raise InputError(
            f"{PREFIX}{name}: the hub does not give it ({first_line(error)}); offline, give the folder of a data set "
            "saved with save_to_disk"
        ) from None


def import_datasets() -> Any:
    """Return the library; raise InputError where it is missing."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{PREFIX} data sets need the library 'datasets': pip install 'stemma-lm[data]'") from None
    return datasets


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n")[0]
