"""Facts about Python itself, which the default corpus states: always there, for a first look."""

import builtins
import inspect

from stemma.probing.facts import Fact, Facts, Relation

RELATIONS = {
    "method": Relation(
        "method",
        ("The method [X] belongs to the type [Y] .", "[X] is a method of [Y] .", "Call [X] on an object of type [Y] ."),
        "N-M",
        "type that has a method",
    ),
    "base": Relation(
        "base",
        ("The class [X] is a subclass of [Y] .", "class [X] ( [Y] )", "[X] inherits from [Y] ."),
        "N-1",
        "base class of an exception",
    ),
    "module": Relation(
        "module",
        ("The function [X] is in the module [Y] .", "from [Y] import [X]", "[X] is defined in [Y] ."),
        "N-1",
        "module of a function",
    ),
}
_TYPES = (str, bytes, list, tuple, dict, set, frozenset, int, float, complex, bytearray, memoryview)
_MODULES = ("math", "os", "sys", "time", "json", "random", "re", "string", "copy", "shutil", "glob", "struct")


def python_facts() -> Facts:
    """Return which types have which methods, which exception is derived from which, and which module holds what."""
    pairs = [("method", name, kind.__name__) for kind in _TYPES for name in vars(kind) if not name.startswith("_")]
    errors = [one for one in vars(builtins).values() if inspect.isclass(one) and issubclass(one, BaseException)]
    pairs += [("base", one.__name__, one.__base__.__name__) for one in errors if one.__base__ is not None]
    for module in _MODULES:
        names = vars(__import__(module))
        pairs += [("module", name, module) for name, one in names.items() if _is_its_own(name, one, module)]
    facts = [Fact(relation, subject, gold, f"{relation}/{subject}/{gold}") for relation, subject, gold in pairs]
    return Facts("python", RELATIONS, facts, len(facts))


def _is_its_own(name: str, thing: object, module: str) -> bool:
    return not name.startswith("_") and inspect.isroutine(thing) and getattr(thing, "__module__", None) == module
