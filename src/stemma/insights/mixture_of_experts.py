"""Are sparse experts better than a dense network of equal cost? (Jiang et al. 2024, "Mixtral of Experts", 3.)"""

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Comparison, Decision, Results, by_sign, difference, values


def decide(results: Results) -> Decision:
    """Decide by the dense model of as many active parameters."""
    effect = difference(results, "mistral", "mixtral", lambda m: m["bits_per_byte"])
    balancing = difference(results, "mixtral-uneven", "mixtral", lambda m: m["bits_per_byte"])
    details = {
        "what balancing gains, bits per byte": balancing,
        "experts in use of 8": over_seeds(values(results, "mixtral", lambda m: m["used_experts"])),
        "experts in use without balancing": over_seeds(values(results, "mixtral-uneven", lambda m: m["used_experts"])),
    }
    return Decision(by_sign(effect), effect, details=details)


CLAIM = Claim(
    name="mixture-of-experts",
    source='Jiang et al. 2024, "Mixtral of Experts", section 3; Fedus et al. 2021, section 2.2 (balancing)',
    hypothesis="of two models in which a token meets equally many parameters, the one that chooses them from many "
    "experts predicts better",
    varied="the feed-forward networks: one, or two of eight half as wide; and whether the router is balanced",
    controlled="tokens and their order, tokenizer, batch, steps, learning rate, active parameters (within 2 %), seeds",
    decides="held-out bits per byte: dense minus experts; reproduced if its interval lies above 0",
    decide=decide,
    experiment=Comparison(("mistral", "mixtral", "mixtral-uneven")),
)
