"""Questions of a task: its data read, its templates filled in."""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stemma.data.dataset_rows import split_of
from stemma.data.hub_datasets import PREFIX
from stemma.data.tables import read_rows
from stemma.errors import InputError
from stemma.prompting.task_files import TaskFile, Template, read_task_file

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A question as it stands in a prompt.

    Args:
        id: which row of its split. text: without its answer. target: the answer as it stands in a solved example.
        gold: the answer to be compared with. choices: to choose from; `index`: the right one. reasoning: written
            before the answer, where there is some.
    """

    id: str
    text: str
    target: str
    gold: str
    choices: Sequence[str] = ()
    index: int | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Task:
    """A task file, the questions that are asked, and those that are shown solved."""

    file: TaskFile
    questions: Sequence[Question]
    examples: Sequence[Question]


def load_task(path: Path, *, most: int | None = None, examples: bool = True) -> Task:
    """Read a task with its data.

    Args:
        most: the first so many questions. examples: read those too that are drawn as solved ones.
    Raises:
        InputError: the file or its data cannot be read, or a template does not fit the data (which row).
    """
    file = read_task_file(path)
    reader = _Templates(file)
    questions = [
        reader.question(row, f"{file.split}-{number}", number) for number, row in _rows(path, file, file.split, most)
    ]
    if not questions:
        raise InputError(f"{path}: the split {file.split} has no questions")
    return Task(file, questions, _examples(path, file, reader) if examples else ())


def _examples(path: Path, file: TaskFile, reader: "_Templates") -> list[Question]:
    samples = file.fewshot_config.samples if file.fewshot_config else None
    if samples is not None:
        return [reader.question(row, f"sample-{number}", number) for number, row in enumerate(samples)]
    split = file.shots_split
    return [reader.question(row, f"{split}-{number}", number) for number, row in _rows(path, file, split, None)]


def _rows(path: Path, file: TaskFile, split: str, most: int | None) -> list[tuple[int, Row]]:
    return list(islice(enumerate(_all_rows(path, file, split)), most))


def _all_rows(path: Path, file: TaskFile, split: str) -> Any:
    if file.dataset_path in ("json", "csv", "parquet"):
        files = file.dataset_kwargs.get("data_files")
        named = files.get(split) if isinstance(files, dict) else files if split == "train" else None
        if not isinstance(named, str):
            raise InputError(f"{path}: dataset_kwargs.data_files: expected a file for the split '{split}'")
        beside = path.parent / named
        table = Path(named) if Path(named).exists() or not beside.exists() else beside
        if table.suffix == ".json" and table.is_file():
            return _json_rows(table, file.dataset_kwargs.get("field"))
        return (row for row, _ in read_rows(table))
    folder = Path(file.dataset_path).expanduser().is_dir()
    name = f"{'' if folder else PREFIX}{file.dataset_path}:{file.dataset_name or ''}:{split}"
    return split_of(name)


def _json_rows(table: Path, field: str | None) -> Any:
    """Return the rows of a file that is one JSON list, or an object with one in a field; else one object a line."""
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
    except ValueError:
        return (row for row, _ in read_rows(table))
    rows = content.get(field) if field and isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return (row for row, _ in read_rows(table))
    return rows


class _Templates:
    """The templates of a task, ready to be filled in."""

    def __init__(self, file: TaskFile) -> None:
        self.file = file
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise InputError("task files need Jinja: pip install 'stemma-lm[evaluation]'") from None
        self._environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self._environment.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(
            pattern, by, text, count=count
        )
        self._error = jinja2.TemplateError
        self._compiled: dict[str, Callable[[Row], str]] = {}

    def question(self, row: Row, name: str, number: int) -> Question:
        """Return a row as a question."""
        file, ours = self.file, self.file.stemma
        choices: list[str] = []
        if file.doc_to_choice is not None:
            found = self._value(file.doc_to_choice, row, "doc_to_choice", number)
            found = _literal(found) if isinstance(found, str) else found
            if not isinstance(found, list | tuple) or not found:
                raise self._wrong("doc_to_choice", number, f"{found!r}, expected a list of choices")
            choices = [str(choice) for choice in found]
        target = self._value(file.doc_to_target, row, "doc_to_target", number)
        if isinstance(target, str) and choices and target.isdigit():
            target = int(target)
        index = None
        if choices:
            if isinstance(target, str) and target in choices:
                target = choices.index(target)
            if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < len(choices):
                raise self._wrong("doc_to_target", number, f"{target!r}, expected one of the choices or its number")
            index, target = target, choices[target]
        target = target[0] if isinstance(target, list) and target else target
        gold = str(target) if ours.gold is None else self._text(ours.gold, row, "stemma.gold", number)
        reasoning = None
        if ours.reasoning is not None:
            reasoning = self._text(ours.reasoning, row, "stemma.reasoning", number)
        text = self._text(file.doc_to_text, row, "doc_to_text", number)
        return Question(name, text, str(target), gold, tuple(choices), index, reasoning)

    def _text(self, template: Template, row: Row, key: str, number: int) -> str:
        return str(self._value(template, row, key, number))

    def _value(self, template: Template, row: Row, key: str, number: int) -> Any:
        """Return a field, a filled-in template, or what stands there itself."""
        if not isinstance(template, str):
            return template
        if template in row:
            return row[template]
        if template not in self._compiled:
            try:
                compiled = self._environment.from_string(template)
            except self._error as error:
                raise InputError(f"{self.file.task}: {key}: {error}") from error
            self._compiled[template] = lambda row: compiled.render(**row)
        try:
            return self._compiled[template](row)
        except (self._error, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise self._wrong(key, number, str(error)) from error

    def _wrong(self, key: str, number: int, message: str) -> InputError:
        return InputError(f"{self.file.task}: {key} of row {number + 1}: {message}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
