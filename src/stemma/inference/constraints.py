"""Texts that must match a JSON schema, a regular expression or one of some choices, through llguidance."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

_TOKENIZERS: "WeakKeyDictionary[Tokenizer, Any]" = WeakKeyDictionary()


class GrammarConstraint:
    """One text on its way through a grammar (see `inference.requests.Constraint`)."""

    def __init__(self, matcher: Any, vocabulary: int, end: int) -> None:
        self._matcher, self._vocabulary, self._end = matcher, vocabulary, end

    def allowed(self) -> np.ndarray:
        """Return bool [vocabulary]: the tokens that may come next, that which ends the text among them where it may."""
        found = np.zeros(self._vocabulary, dtype=bool)
        if self._matcher.is_stopped():
            found[self._end] = True
            return found
        bits = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)  # 0 or 200 for each token
        count = min(len(bits), self._vocabulary)
        found[:count] = bits[:count] > 0
        if not found.any():  # it has come to an end of its own
            found[self._end] = True
        return found

    def accept(self, token: int) -> None:
        """Take the token that came."""
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not allowed: {self._matcher.get_error()}")

    def fork(self) -> "GrammarConstraint":
        """Return an independent one in the same state."""
        return GrammarConstraint(self._matcher.deep_copy(), self._vocabulary, self._end)


def json_schema(tokenizer: "Tokenizer", schema: Mapping[str, Any] | bool, vocabulary: int = 0) -> GrammarConstraint:
    """Return the constraint that a text is a JSON value which a schema allows.

    Args:
        schema: a JSON schema; {}: any value. vocabulary: of the model; default: the tokenizer's.
    Raises:
        InputError: a schema that cannot be used; a tokenizer without a token that ends a text; no llguidance.
    """
    return _constraint(tokenizer, "json_schema", json.dumps(schema, sort_keys=True), vocabulary)


def json_object(tokenizer: "Tokenizer", vocabulary: int = 0) -> GrammarConstraint:
    """Return the constraint that a text is a JSON object."""
    return json_schema(tokenizer, {"type": "object"}, vocabulary)


def regular_expression(tokenizer: "Tokenizer", expression: str, vocabulary: int = 0) -> GrammarConstraint:
    """Return the constraint that a whole text matches an expression (Rust's syntax)."""
    return _constraint(tokenizer, "regex", expression, vocabulary)


def one_of(tokenizer: "Tokenizer", choices: Sequence[str], vocabulary: int = 0) -> GrammarConstraint:
    """Return the constraint that a text is one of some."""
    grammar = "start: " + " | ".join(json.dumps(choice) for choice in choices)
    return _constraint(tokenizer, "lark", grammar, vocabulary)


def _constraint(tokenizer: "Tokenizer", kind: str, content: str, vocabulary: int) -> GrammarConstraint:
    library = _library()
    if tokenizer not in _TOKENIZERS:
        _TOKENIZERS[tokenizer] = library.LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=tokenizer.vocabulary, eos_token=tokenizer.separator
        )
    matcher = library.LLMatcher(_TOKENIZERS[tokenizer], _compiled(kind, content), log_level=0)
    if matcher.is_error():
        reason = str(matcher.get_error()).splitlines()[0]
        raise InputError(f"{kind.replace('_', ' ')}: {reason}")
    return GrammarConstraint(matcher, vocabulary or tokenizer.vocabulary, tokenizer.separator)


@lru_cache(maxsize=64)
def _compiled(kind: str, content: str) -> str:
    matcher = _library().LLMatcher
    try:
        return str(getattr(matcher, f"grammar_from_{kind}")(content))
    except ValueError as error:
        raise InputError(f"{kind.replace('_', ' ')}: {str(error).splitlines()[0]}") from error


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("constrained output needs llguidance: pip install 'stemma-lm[serve]'") from None
    return llguidance
