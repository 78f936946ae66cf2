"""What an answer must look like: from a client's `response_format` to a constraint of the engine."""

import json
from typing import Any

from stemma.errors import InputError
from stemma.inference.constraints import json_schema
from stemma.inference.requests import Constraint
from stemma.serving.errors import wrong
from stemma.serving.limits import SCHEMA_BYTES, SCHEMA_DEPTH
from stemma.serving.served import Served

_ANY_OBJECT = {"type": "object"}
# Between the parts of JSON: nothing, a blank, or a line break with an indent. With any number of them allowed, a small
# model may write nothing else to the end.
_BLANKS = {"whitespace_pattern": r"(\n {0,16}| )?"}


def constraint_for(schema: dict[str, Any] | None, served: Served, parameter: str) -> Constraint:
    """Return the constraint to texts that are JSON of a schema; None: any object.

    Raises:
        APIError: 400, the schema is too large or nested too deeply, or cannot be used.
    """
    schema = _ANY_OBJECT if schema is None else schema
    if len(json.dumps(schema)) > SCHEMA_BYTES:
        raise wrong(parameter, f"the schema has more than {SCHEMA_BYTES} bytes")
    if depth_of(schema) > SCHEMA_DEPTH:
        raise wrong(parameter, f"the schema is nested more than {SCHEMA_DEPTH} deep")
    try:
        return json_schema(served.tokenizer, {**schema, "x-guidance": _BLANKS}, served.model.config.vocabulary)
    except InputError as error:
        raise wrong(parameter, str(error)) from error


def depth_of(value: Any) -> int:
    """Return how many lists and objects are inside each other, without recursion."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth
