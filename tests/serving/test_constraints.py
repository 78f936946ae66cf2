"""A constraint that fails ends its own text and no other."""

import numpy as np
import pytest

from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling
from stemma.serving.constraints import Guarded, depth_of


class Failing:
    """Lets three tokens through."""

    def __init__(self, method, vocabulary):
        self.method, self.left, self.vocabulary = method, 3, vocabulary

    def allowed(self):
        if self.method == "allowed" and not self.left:
            raise RuntimeError("too many states")
        return np.ones(self.vocabulary, dtype=bool)

    def accept(self, token):
        self.left -= 1
        if self.method == "accept" and not self.left:
            raise ValueError("not allowed")

    def fork(self):
        return Failing(self.method, self.vocabulary)


@pytest.mark.parametrize("method", ["allowed", "accept"])
def test_a_failing_constraint_ends_its_text(model, tokenizer, method):
    prompt = tokenizer.encode("the quick")
    other = Request(prompt, 12, Sampling(temperature=0), ignore_end=True)
    (alone,) = Engine(model, tokenizer).run([other])[0]
    constraint = Guarded(Failing(method, model.config.vocabulary), model.config.vocabulary, tokenizer.separator)
    limited = Request(tokenizer.encode("fox"), 12, Sampling(temperature=0), constraint=constraint)
    (text,), (beside,) = Engine(model, tokenizer).run([limited, other])
    assert len(text.new) == 4 and text.new[-1] == tokenizer.separator and text.finish_reason == "end"
    assert beside.new == alone.new


def test_depth():
    assert depth_of({"a": [{"b": 1}], "c": 2}) == 3 and depth_of(5) == 0
