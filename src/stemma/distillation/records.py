"""What teachers think of each token, computed once and kept on disk: of all tokens, or of the likeliest.

<folder>/key.json               of what, by whom
<folder>/part-00000.safetensors the tokens of so many items, one behind the other; `starts` says where each begins

A record of the likeliest holds the sum of the rest, too, so that the loss is that of k + 1 outcomes (the rest is one of
them): a lower bound of the whole divergence, which still punishes what the student gives to the rest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stemma.distillation.linear_divergence import Targets
from stemma.errors import InputError
from stemma.files import write_whole
from stemma.layers.soft_targets import soften
from stemma.training.objective import Display

ALL, IDS, LIKELIEST, REST = "soft", "soft_ids", "soft_likeliest", "soft_rest"
_PART = 256  # items


def record_of(log_probabilities: Tensor, kept: int | None) -> dict[str, Tensor]:
    """Return what is kept of log-probabilities, float32 [tokens, vocabulary].

    Args:
        kept: None: all, as `soft`, float16 [tokens, vocabulary]; else so many likeliest ones, `soft_ids`, int32
            [tokens, kept], and `soft_likeliest`, float16 [tokens, kept], and the rest's as `soft_rest`, float16
            [tokens].
    """
    if kept is None or kept >= log_probabilities.shape[-1]:
        return {ALL: log_probabilities.half()}
    likeliest, ids = log_probabilities.topk(kept)
    rest = log_probabilities.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return {IDS: ids.int(), LIKELIEST: likeliest.half(), REST: rest.half()}


def record_of_likeliest(ids: Tensor, likeliest: Tensor) -> dict[str, Tensor]:
    """Return the record (see `record_of`) of tokens of which only the likeliest are known.

    Args:
        ids: int64 [tokens, kept]. likeliest: their log-probabilities, float32 [tokens, kept].
    """
    rest = (1 - likeliest.double().exp().sum(1)).clamp_min(1e-7).log()  # rounding may leave nothing
    return {IDS: ids.int(), LIKELIEST: likeliest.half(), REST: rest.half()}


def targets_of_records(batch: Mapping[str, Tensor], temperature: float) -> Targets:
    """Return the teachers' log-probabilities from a batch of records, made at that temperature.

    The rest of the likeliest is spread as the student itself spreads it: exactly then the divergence over all tokens
    is that of the k + 1 outcomes, and so is its gradient.
    """
    if ALL in batch:
        return lambda place, student: soften(batch[ALL][place].float())
    ids, likeliest, rest = batch[IDS].long(), batch[LIKELIEST].float(), batch[REST].float()

    def targets(place: slice, student: Tensor) -> Tensor:
        top, their, tail = ids[place], likeliest[place], rest[place].unsqueeze(1)
        # Rounded to 16 bits, they do not sum to one exactly.
        total = torch.cat([their, tail], 1).logsumexp(1, keepdim=True)
        own = student.scatter(1, top, -torch.inf)
        own = own - own.logsumexp(1, keepdim=True)
        return (own + (tail - total)).scatter(1, top, their - total)

    return targets


class Records:
    """The records of items by their number; a part that is there is not computed again.

    Args:
        folder: its own. key: all that they depend on, by what it is called. items: how many.
    Raises:
        InputError: the folder holds records of something else; names what differs.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], items: int) -> None:
        self.folder, self.items = folder, items
        path = folder / "key.json"
        wanted = json.loads(json.dumps({**key, "items": items}))
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
            if changed:
                raise InputError(f"{folder}: what teachers thought with other {', '.join(changed)}; delete the folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as temporary:
                temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        self._opened = lru_cache(maxsize=16)(self._open)

    def compute(self, think: Callable[[Sequence[int]], list[dict[str, Tensor]]], shown: Display) -> None:
        """Make the parts that are missing.

        Args:
            think: returns the records (see `record_of`) of items by their numbers.
        Raises:
            OSError: a part could not be written.
        """
        missing = [part for part in range(-(-self.items // _PART)) if not self._path(part).is_file()]
        with shown.preparing() as report:
            for done, part in enumerate(missing):
                report("what the teachers think", done, len(missing))
                records = think(range(part * _PART, min((part + 1) * _PART, self.items)))
                lengths = torch.tensor([len(next(iter(record.values()))) for record in records])
                content = {name: torch.cat([record[name] for record in records]) for name in records[0]}
                content["starts"] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
                with write_whole(self._path(part)) as temporary:
                    save_file(content, temporary)

    def record(self, number: int) -> dict[str, Tensor]:
        """Return the record of an item."""
        opened, starts = self._opened(number // _PART)
        start, stop = starts[number % _PART : number % _PART + 2]
        return {name: opened.get_slice(name)[start:stop] for name in opened.keys() if name != "starts"}  # noqa: SIM118

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05}.safetensors"

    def _open(self, part: int) -> tuple[Any, list[int]]:
        opened = safe_open(self._path(part), framework="pt").__enter__()
        return opened, opened.get_tensor("starts").tolist()
