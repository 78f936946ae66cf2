"""Do the layers hold more about a word than its embedding? (Tenney et al. 2019, "What do you learn from context?")"""

from typing import Any

from stemma.evaluation.intervals import paired_over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, values
from stemma.insights.edge_jobs import SCALES, prepare, probed
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.probing.edge_run import CONVOLUTION, LEXICAL, MIX, RANDOM, TOP, Wanted

_PROBES = {
    MIX: "all layers",
    TOP: "last layer",
    LEXICAL: "embeddings",
    CONVOLUTION: "convolution over embeddings",
    RANDOM: "layers of a random encoder",
}


def work(job: Job, report: Report) -> dict[str, Any]:
    """Pretrain, and return the micro-F1 of each probe."""
    found = probed(job, report, ("roles",), Wanted())["roles"]
    return {name: encoder["f1"][0] for name, encoder in found["encoders"].items()}


def decide(results: Results) -> Decision:
    """Decide by both models, each against its own embeddings."""

    def gain(arm: str, below: str) -> Any:
        return paired_over_seeds(values(results, arm, lambda m: m[MIX]), values(results, arm, lambda m: m[below]))

    effects = {arm: gain(arm, LEXICAL) for arm in EXPERIMENT.arms}
    outcome, effect = by_all(effects.values())
    details = {
        f"{label}: all layers minus {_PROBES[below]}": gain(arm, below)
        for arm, label in EXPERIMENT.arms.items()
        for below in (LEXICAL, CONVOLUTION, RANDOM)
    }
    return Decision(outcome, effect, details=details)


def _column(probe: str, title: str) -> Column:
    def value(measures: Measures) -> float:
        return float(measures[probe])

    return Column(f"micro-F1, {title}", probe, value)


EXPERIMENT = Experiment(
    arms={"gpt": "GPT", "bert": "BERT"},
    scales=SCALES,
    work=work,
    prepare=prepare,
    columns=[_column(probe, title) for probe, title in _PROBES.items()],
)

CLAIM = Claim(
    name="contextual-beats-lexical",
    source='Tenney et al. 2019, "What do you learn from context?", section 5, table 2',
    hypothesis="the layers of a pretrained model hold syntax that the embeddings of the same words do not",
    varied="what a probe reads: a mix of all layers, or the embeddings alone",
    controlled="the pretrained model, the probe and its training, the words (names in functions of Python's library) "
    "and their labels (the role of a name in its expression, by Python's parser)",
    decides="micro-F1 of a probe of all layers minus that of one of the embeddings; reproduced if the intervals of "
    "both GPT and BERT lie above 0, not reproduced if one lies below",
    decide=decide,
    experiment=EXPERIMENT,
)
