"""Is a rolling buffer enough? (Jiang et al. 2023, section 2: its size is fixed, and nothing is lost.)"""

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Comparison, Decision, Outcome, Results, values

TOLERANCE = 1e-3  # nats of a single token: rounding


def decide(results: Results) -> Decision:
    """Decide by every single token, and by the bytes."""
    (arm,) = results["plan"]["arms"]
    effect = over_seeds(
        [
            rolling - whole
            for rolling, whole in zip(
                values(results, arm, lambda m: m["rolling_nll"]),
                values(results, arm, lambda m: m["at_once_nll"]),
                strict=True,
            )
        ]
    )
    largest = values(results, arm, lambda m: m["rolling_largest_difference"])
    growth = values(results, arm, lambda m: m["cache_bytes_20"] / m["cache_bytes_2"])
    same = max(largest) < TOLERANCE and max(growth) == 1.0
    outcome: Outcome = "reproduced" if same else "not reproduced"
    details = {
        "largest difference of a token, nats": over_seeds(largest),
        "bytes of the cache for 20 windows, as a multiple of those for 2": over_seeds(growth),
    }
    return Decision(outcome, effect, details=details)


CLAIM = Claim(
    name="rolling-cache",
    source='Jiang et al. 2023, "Mistral 7B", section 2',
    hypothesis="a buffer of a window's size, written in place, gives the same predictions as all keys, however long "
    "the text",
    varied="how texts of 20 windows are read: at once, or through a rolling buffer, in pieces and then token by token",
    controlled="the weights (trained with the window), the texts",
    decides=f"nats per token through the buffer minus at once; reproduced if no token of any seed differs by "
    f"{TOLERANCE} or more and the buffer does not grow with the text",
    decide=decide,
    experiment=Comparison(("mistral-window",), long_texts=8),
)
