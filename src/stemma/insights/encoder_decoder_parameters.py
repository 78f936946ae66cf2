"""Does an encoder-decoder need more parameters for the same understanding? (Du et al. 2022, section 1 and table 1.)"""

from collections.abc import Mapping
from typing import Any

from stemma.insights.claims import CONTROLLED, Claim, Comparison, Decision, Results, by_sign, difference, values


def _accuracy(measures: Mapping[str, Any]) -> float:
    return float(measures["finetuned"]["test"])


def decide(results: Results) -> Decision:
    """Decide by GLM against the T5 of its own size, if pretraining teaches GLM anything for the task."""
    effect = difference(results, "glm", "t5", _accuracy)
    larger = difference(results, "t5-twice", "t5", _accuracy)
    bert = difference(results, "bert", "t5", _accuracy)
    details = {"T5, twice the parameters, minus T5": larger, "BERT minus T5": bert}
    majority = results["measures"][f"glm-{results['plan']['seeds'][0]}"]["finetuned"]["majority"]
    best = max(min(values(results, arm, _accuracy)) for arm in ("glm", "bert"))
    if best <= majority:
        premise = f"no model is better than always answering the most frequent class ({majority:.3f})"
        return Decision("undecided", effect, premise, details)
    return Decision(by_sign(effect), effect, details=details)


CLAIM = Claim(
    name="encoder-decoder-parameters",
    source='Du et al. 2022, "GLM: General Language Model Pretraining with Autoregressive Blank Infilling", section 1',
    hypothesis="an encoder-decoder needs more parameters than one stack for the same understanding",
    varied="the framework, and T5's number of parameters: that of the others, and twice it",
    controlled=CONTROLLED,
    decides="accuracy after fine-tuning: GLM minus T5 with as many parameters; reproduced if its interval lies above 0",
    decide=decide,
    experiment=Comparison(("bert", "glm", "t5", "t5-twice"), labels=True),
)
