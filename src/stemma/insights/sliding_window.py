"""Does a sliding window cost quality? (Jiang et al. 2023, section 2: layers on top of each other see further.)"""

from stemma.evaluation.intervals import Interval
from stemma.insights.claims import CONTROLLED, Claim, Comparison, Decision, Outcome, Results, difference, values

MARGIN = 0.02  # bits per byte: about what another seed changes


def decide(results: Results) -> Decision:
    """Decide by whether the window's loss is within the margin of full attention's."""
    effect = difference(results, "mistral-window", "mistral", lambda m: m["bits_per_byte"])
    outcome: Outcome = "undecided"
    if effect.high < MARGIN:
        outcome = "reproduced"
    elif effect.low > MARGIN:
        outcome = "not reproduced"
    details = {
        "pairs of tokens that are looked at, as a share of full attention's": _share(results, "share_of_pairs"),
        "keys that are kept, as a share of full attention's": _share(results, "share_of_cache"),
    }
    return Decision(outcome, effect, details=details)


def _share(results: Results, name: str) -> Interval:
    share = values(results, "mistral-window", lambda m: float(m[name]))[0]
    return Interval(share, share, share)  # exact: it follows from the window


CLAIM = Claim(
    name="sliding-window",
    source='Jiang et al. 2023, "Mistral 7B", section 2',
    hypothesis="attention to a window, a fraction of the text, predicts as well as attention to all of it",
    varied="how far a layer sees back: 16 tokens or the whole text",
    controlled=CONTROLLED,
    decides=f"held-out bits per byte of texts of 64 tokens: with the window minus without; reproduced if its interval "
    f"lies below {MARGIN}, not reproduced if above it",
    decide=decide,
    experiment=Comparison(("mistral", "mistral-window")),
)
