"""Does it matter that GLM's spans are written in random order? (Du et al. 2022, section 3.3: removing the shuffling
leads to a severe drop on SuperGLUE.)"""

from stemma.insights.claims import CONTROLLED, Claim, Comparison, Decision, Results, by_sign, difference


def decide(results: Results) -> Decision:
    """Decide by the mean over all orders: shuffling is meant to teach how spans depend on each other both ways."""
    effect = difference(results, "glm-in-order", "glm", lambda m: m["all_orders_nll"])
    in_order = difference(results, "glm-in-order", "glm", lambda m: m["text_order_nll"])
    one = difference(results, "glm-in-order", "glm", lambda m: m["blank_nll"])
    details = {"nats a token, from left to right": in_order, "nats a token, one blank": one}
    return Decision(by_sign(effect), effect, details=details)


CLAIM = Claim(
    name="glm-shuffling",
    source='Du et al. 2022, "GLM: General Language Model Pretraining with Autoregressive Blank Infilling", section 3.3',
    hypothesis="writing the spans of a text in random order teaches more than writing them in the order of the text",
    varied="the order in which the spans are written in pretraining: random, or that of the text",
    controlled=CONTROLLED,
    decides="nats per token of three held-out blanks a passage, in the mean over all six orders: without shuffling "
    "minus with; reproduced if its interval lies above 0. (From left to right alone the ablation may well win: it "
    "trains on nothing else.)",
    decide=decide,
    experiment=Comparison(("glm", "glm-in-order"), several_blanks=128),
)
