"""From a recipe's `family`, `model` and `objective` to the configuration and the objective themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError, closest
from stemma.families import FAMILIES, Family
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.tokens import GLMTokens
from stemma.families.t5.tokens import sentinel_ids

# Says where a key of the recipe was written: "file:line: model.heads".
Where = Callable[[Sequence[str]], str]

# What a configuration has of the tokenizer, unless the recipe gives it.
CONFIG_FROM_TOKENIZER: dict[str, Callable[[Tokenizer], Any]] = {
    "vocabulary": lambda tokenizer: tokenizer.vocabulary,
    "padding": lambda tokenizer: tokenizer.pad,
}
# What an objective may need of the tokenizer: it has a field of that name, which is then not the recipe's to give.
FROM_TOKENIZER: dict[str, Callable[[Tokenizer], Any]] = {
    "separator": lambda tokenizer: tokenizer.separator,
    "vocabulary": lambda tokenizer: tokenizer.vocabulary,
    "bert_tokens": BERTTokens.of,
    "glm_tokens": GLMTokens.of,
    "sentinels": sentinel_ids,
    "words": lambda tokenizer: tuple(tokenizer.token(index) for index in range(tokenizer.vocabulary)),
}


def find_family(name: str, where: Where) -> Family:
    """Return the family called `name`.

    Raises:
        InputError: no such family.
    """
    return FAMILIES[_known(name, FAMILIES, "family", where(("family",)))]


def expand_model(family: Family, options: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """Return all fields of the configuration that `options` (a preset and fields) describe.

    What follows from the tokenizer, such as the vocabulary, is left out unless `options` give it.

    Raises:
        InputError: unknown preset or field, or a bad value.
    """
    given = dict(options)
    preset = given.pop("preset", None)
    start: dict[str, Any] = {}
    if preset is not None:
        start = asdict(family.presets[_known(preset, family.presets, "preset", where(("model", "preset")))])
    check_fields(family.config, given, "model", where)
    config = _validated(family.config, {**start, **given}, "model", where)
    content = asdict(config)
    return {name: value for name, value in content.items() if name in given or name not in CONFIG_FROM_TOKENIZER}


def expand_objective(family: Family, options: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """Return `options` with the objective's name; the family's first objective is the default.

    Raises:
        InputError: unknown objective, unknown field, or one that the tokenizer decides.
    """
    name = options.get("name", next(iter(family.objectives)))
    objective: Any = family.objectives[_known(name, family.objectives, "objective", where(("objective", "name")))]
    given = {key: value for key, value in options.items() if key != "name"}
    check_fields(objective, given, "objective", where, hidden=set(FROM_TOKENIZER))
    needed = {field.name: 0 for field in fields(objective) if field.name in FROM_TOKENIZER}
    _validated(objective, {**given, **needed}, "objective", where)
    return {"name": name, **given}


def adapt_tokenizer(family: Family, options: Mapping[str, Any], tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the special tokens that the objective of an expanded recipe needs beside its own.

    An objective that needs any has a `prepare_tokenizer(tokenizer, options)`.
    """
    prepare = getattr(family.objectives[options["name"]], "prepare_tokenizer", None)
    return prepare(tokenizer, options) if prepare else tokenizer


def build_config(family: Family, options: Mapping[str, Any], tokenizer: Tokenizer) -> Any:
    """Return the configuration of an expanded recipe for a tokenizer.

    Raises:
        InputError: the recipe's own vocabulary is too small for the tokenizer.
    """
    if options.get("vocabulary", tokenizer.vocabulary) < tokenizer.vocabulary:
        raise InputError(
            f"model.vocabulary: {options['vocabulary']} is too small for the tokenizer's {tokenizer.vocabulary} ids"
        )
    needed = {field.name for field in fields(family.config)} & CONFIG_FROM_TOKENIZER.keys()
    given = {name: CONFIG_FROM_TOKENIZER[name](tokenizer) for name in sorted(needed)}
    return TypeAdapter(family.config).validate_python({**given, **options})


def build_objective(family: Family, options: Mapping[str, Any], tokenizer: Tokenizer) -> Any:
    """Return the objective of an expanded recipe, with what it needs of the tokenizer."""
    objective: Any = family.objectives[options["name"]]
    given = {key: value for key, value in options.items() if key != "name"}
    for field in fields(objective):
        if field.name in FROM_TOKENIZER:
            given[field.name] = FROM_TOKENIZER[field.name](tokenizer)
    return TypeAdapter(objective).validate_python(given)


def _known(name: Any, choices: Mapping[str, Any], what: str, where: str) -> str:
    if name not in choices:
        hint = closest(str(name), choices) or f", expected one of {', '.join(choices)}"
        raise InputError(f"{where}: no {what} '{name}'{hint}")
    return str(name)


def check_fields(
    kind: Any, given: Mapping[str, Any], section: str, where: Where, hidden: set[str] | None = None
) -> None:
    """Check that every key of `given` is a field of the dataclass `kind`, and none of those `hidden`.

    Raises:
        InputError: one is not; names the closest field.
    """
    known = {field.name: None for field in fields(kind) if field.name not in (hidden or set())}
    for key in given:
        if key not in known:
            hint = closest(str(key), known) or f", expected one of {', '.join(known)}"
            raise InputError(f"{where((section, str(key)))}: unknown key{hint}")


def _validated(kind: Any, content: Mapping[str, Any], section: str, where: Where) -> Any:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        keys = (section, *map(str, problem["loc"]))
        message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        raise InputError(f"{where(keys)}: {message}, got {problem['input']!r}") from error
    except ZeroDivisionError as error:  # configurations ask whether one size is a multiple of another
        raise InputError(f"{where((section,))}: a size is 0, expected 1 or more") from error
