"""What an answer must look like: from a client's `response_format` to a constraint of the engine."""

import json
import logging
from typing import Any

import numpy as np

from stemma.errors import InputError
from stemma.inference.constraints import json_schema
from stemma.inference.requests import Constraint
from stemma.serving.errors import wrong
from stemma.serving.limits import SCHEMA_BYTES, SCHEMA_DEPTH
from stemma.serving.served import Served

logger = logging.getLogger("stemma.serving")

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
        vocabulary: int = served.model.config.vocabulary
        constraint = json_schema(served.tokenizer, {**schema, "x-guidance": _BLANKS}, vocabulary)
        return Guarded(constraint, vocabulary, served.tokenizer.separator)
    except InputError as error:
        raise wrong(parameter, str(error)) from error


class Guarded:
    """A constraint that ends its text when it fails, so that one client's schema does not end the others' texts.

    Args:
        vocabulary: the model's. end: the token that ends a text.
    """

    def __init__(self, constraint: Constraint, vocabulary: int, end: int) -> None:
        self._constraint, self._vocabulary, self._end = constraint, vocabulary, end
        self._failed = False

    def allowed(self) -> np.ndarray:
        """See `inference.requests.Constraint`."""
        if not self._failed:
            try:
                return self._constraint.allowed()
            except Exception as error:  # the library's limits: time, size, states
                self._fail(error)
        only = np.zeros(self._vocabulary, dtype=bool)
        only[self._end] = True
        return only

    def accept(self, token: int) -> None:
        """See `inference.requests.Constraint`."""
        try:
            self._constraint.accept(token)
        except Exception as error:
            self._fail(error)

    def fork(self) -> "Guarded":
        """See `inference.requests.Constraint`."""
        return Guarded(self._constraint.fork(), self._vocabulary, self._end)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        logger.warning("a constraint has failed", exc_info=error)


def depth_of(value: Any) -> int:
    """Return how many lists and objects are inside each other, without recursion."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth
