"""Numbers of a comparison that do not need a model."""

from math import nan

import pytest

from stemma.insights.measures import _is_first_best


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([-1.0, -2.0, -3.0], True),
        ([-2.0, -1.0, -3.0], False),
        ([-1.0, -1.0], False),  # a model to which all is the same chooses nothing
        ([nan, -1.0], False),
        ([nan, nan], False),
        ([-1.0, nan], True),
    ],
)
def test_the_right_piece_must_be_above_all_others(scores: list[float], right: bool) -> None:
    assert _is_first_best(scores) is right
