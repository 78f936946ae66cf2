"""Where a recipe comes from: shipped names, YAML with line numbers, and keys overridden on the command line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import stemma
from stemma.errors import InputError, closest

KeyPath = tuple[str, ...]

# Short spellings on the command line, and giving one of these takes back what the file says of the other: in a recipe,
# and in each part of one that consists of several.
SPELLINGS: dict[KeyPath, KeyPath] = {("training", "lr"): ("training", "learning_rate")}
INSTEAD_OF: dict[KeyPath, KeyPath] = {
    ("training", "epochs"): ("training", "steps"),
    ("training", "steps"): ("training", "epochs"),
}


def recipes_directory() -> Path:
    """Return the folder of shipped recipes: inside the package, or beside `src` in a checkout."""
    package = Path(stemma.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes, such as "gpt/tiny"."""
    root = recipes_directory()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe given by path or by shipped name.

    Raises:
        InputError: neither; names the closest shipped recipe.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name_or_path) in shipped:
        return recipes_directory() / f"{name_or_path}.yaml"
    hint = closest(str(name_or_path), shipped) or f"; shipped are: {', '.join(shipped)}"
    raise InputError(f"no recipe file or shipped recipe '{name_or_path}'{hint}")


class RecipeSource:
    """The content of a recipe file, and for each of its keys where it was written.

    Raises:
        InputError: not UTF-8, not YAML, or not a mapping, with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[KeyPath, int] = {}
        self._overridden: set[KeyPath] = set()
        try:
            text = path.read_text(encoding="utf-8")
            tree = yaml.compose(text, Loader=yaml.SafeLoader)
            content = yaml.safe_load(text)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}, expected YAML") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InputError(f"{path}:{line}: not YAML ({error.problem})") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a mapping of recipe keys such as 'family: gpt'")
        self.content: dict[str, Any] = content
        self._lines.update(_key_lines(tree, ()))

    @classmethod
    def of(cls, content: dict[str, Any]) -> "RecipeSource":
        """Return the source of a recipe that stands in no file."""
        source = cls.__new__(cls)
        source.path, source.content, source._lines, source._overridden = Path("recipe"), content, {}, set()
        return source

    def override(self, assignment: str) -> None:
        """Set one key from `section.key=value`.

        Raises:
            InputError: no "=", the value is not YAML, or the key goes through something that is not a section.
        """
        dotted, equals, text = assignment.partition("=")
        keys = tuple(dotted.strip().split("."))
        keys = (*keys[:-2], *SPELLINGS.get(keys[-2:], keys[-2:]))
        dotted = ".".join(keys)
        if not equals or not all(keys):
            raise InputError(f"command line: '{assignment}' is not of the form section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"command line: the value of {dotted} is not YAML: {text}") from error
        section = self.content
        for depth, key in enumerate(keys[:-1]):
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise InputError(f"command line: {dotted}: {'.'.join(keys[: depth + 1])} is not a section")
        section[keys[-1]] = value
        self._overridden.add(keys)
        other = INSTEAD_OF.get(keys[-2:])
        if other is not None and (*keys[:-2], *other) not in self._overridden:
            section[other[-1]] = None

    def where(self, location: Sequence[str | int]) -> str:
        """Return "file:line: a.b" or "command line: a.b" for a key."""
        path = tuple(str(key) for key in location)
        dotted = ".".join(path)
        if path not in self._lines and any(keys[: len(path)] == path for keys in self._overridden):
            return f"command line: {dotted}"
        for end in range(len(path), 0, -1):
            if path[:end] in self._overridden:
                return f"command line: {dotted}"
            if path[:end] in self._lines:
                return f"{self.path}:{self._lines[path[:end]]}: {dotted}"
        return f"{self.path}: {dotted}" if dotted else str(self.path)

    def explain(self, error: ValidationError, model: type[BaseModel]) -> InputError:
        """Turn the first problem that pydantic found into one line."""
        # A misspelt key shows up twice, as unknown and as missing: the former says more.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        keys = problem["loc"]
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, keys[:-1])
            hint = closest(str(keys[-1]), known) or f", expected one of {', '.join(known)}"
            return InputError(f"{self.where(keys)}: unknown key{hint}")
        if problem["type"] == "missing":
            return InputError(f"{self.where(keys)}: is missing")
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
        return InputError(f"{self.where(keys)}: {message[:1].lower()}{message[1:]}{got}")


def _key_lines(node: yaml.Node | None, prefix: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = (*prefix, str(key.value))
        yield path, key.start_mark.line + 1
        yield from _key_lines(value, path)


def _known_keys(model: type[BaseModel], keys: Sequence[str | int]) -> list[str]:
    """Name the fields of the section that `keys` lead to."""
    for key in keys:
        field: FieldInfo | None = model.model_fields.get(str(key))
        section = field and _section_of(field.annotation)
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
