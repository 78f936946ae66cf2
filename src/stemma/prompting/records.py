"""A file with a line a question, to which a run that was interrupted goes on adding.

The first line says of which run it is; a last line that was torn by a kill is left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.errors import InputError
from stemma.files import write_whole

Record = dict[str, Any]


class Records:
    """What is known of each question by its id, in memory and, if there is a path, in a file.

    Args:
        header: what decides the answers; a file with another one is another run's.
    Raises:
        InputError: the file is another run's, or none.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path, self.found = path, dict[str, Record]()
        self._header = json.dumps(header)
        if path is not None and path.is_file():
            self._write(path, self._read(path, json.loads(self._header)))

    def add(self, records: list[Record]) -> None:
        """Take records of further questions."""
        self.found |= {record["id"]: record for record in records}
        if self.path is None:
            return
        if not self.path.is_file():  # not before there is something to keep: a run may be refused until then
            self._write(self.path, [])
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))

    def _write(self, path: Path, lines: list[str]) -> None:
        with write_whole(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in [self._header, *lines]), encoding="utf-8")

    def _read(self, path: Path, header: Record) -> list[str]:
        kept = []
        first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        there = _parsed(first)
        if not isinstance(there, dict):
            raise InputError(f"{path}: not the records of an evaluation; give another --out")
        changed = [
            f"{name}: {header.get(name)}, {there.get(name)}"
            for name in {**header, **there}
            if header.get(name) != there.get(name)
        ]
        if changed:
            raise InputError(f"{path}: of another run (here, there): {'; '.join(changed)}. Give another --out")
        for line in lines:
            record = _parsed(line)
            if isinstance(record, dict) and "id" in record:
                self.found[record["id"]] = record
                kept.append(line)
        return kept


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
