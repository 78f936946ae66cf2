"""Is syntax found in lower layers than what words refer to? (Tenney, Das and Pavlick 2019)"""

from collections.abc import Sequence
from typing import Any

from stemma.evaluation.intervals import over_seeds, paired_over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, values
from stemma.insights.edge_jobs import SCALES, prepare, probed
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.parts import Bars
from stemma.insights.workers import Report
from stemma.probing.edge_run import Wanted
from stemma.probing.python_edges import PythonTask

_TASKS: dict[PythonTask, str] = {"roles": "syntax: the role of a name", "scopes": "semantics: what it refers to"}
_LEAST = 0.02  # of F1 that the layers must gain over the embeddings, for their expected layer to mean anything


def work(job: Job, report: Report) -> dict[str, Any]:
    """Pretrain; return of each task its expected layer, its scores by layer and the centre of gravity of its mix."""
    found = probed(job, report, tuple(_TASKS), Wanted(baselines=False, analysis=True))
    return {
        task: {
            "expected": results["layers"]["expected_layer_as_it_is"],
            "centre": results["layers"]["centre_of_gravity"],
            "cumulative": [score for score, _, _ in results["layers"]["cumulative"]],
        }
        for task, results in found.items()
    }


def decide(results: Results) -> Decision:
    """Decide by the expected layers; undecided where the layers gain too little for one."""
    (arm,) = EXPERIMENT.arms

    def of(task: str, name: str) -> list[float]:
        return values(results, arm, lambda measures: float(measures[task][name]))

    def gains(task: str) -> list[float]:
        return values(results, arm, lambda measures: measures[task]["cumulative"][-1] - measures[task]["cumulative"][0])

    effect = paired_over_seeds(of("scopes", "expected"), of("roles", "expected"))
    details = {f"expected layer, {title}": over_seeds(of(task, "expected")) for task, title in _TASKS.items()}
    details["centre of gravity, semantics minus syntax"] = paired_over_seeds(
        of("scopes", "centre"), of("roles", "centre")
    )
    least = min(min(gains(task)) for task in _TASKS)
    if least < _LEAST:
        premise = f"the layers gain {least:.3f} of F1 over the embeddings, less than {_LEAST}: no expected layer"
        return Decision("undecided", effect, premise, details)
    return Decision(by_sign(effect), effect, details=details)


def charts(results: Results) -> Sequence[Bars]:
    """Return the scores of the layers up to each, by task."""
    (arm,) = EXPERIMENT.arms
    layers = len(next(iter(results["measures"].values()))["roles"]["cumulative"])

    def score(task: str, layer: int) -> Any:
        return over_seeds(values(results, arm, lambda measures: measures[task]["cumulative"][layer]))

    rows = [[score(task, layer) for task in _TASKS] for layer in range(layers)]
    caption = "Micro-F1 of a probe of the mix of the layers up to each; 0: the embeddings."
    return [Bars([str(layer) for layer in range(layers)], list(_TASKS.values()), rows, caption, "micro-F1")]


def _column(task: PythonTask, title: str) -> Column:
    def value(measures: Measures) -> float:
        return float(measures[task]["expected"])

    return Column(f"expected layer, {title}", task, value)


EXPERIMENT = Experiment(
    arms={"bert": "BERT"},
    scales=SCALES,
    work=work,
    prepare=prepare,
    columns=[_column(task, title) for task, title in _TASKS.items()],
    charts=charts,
)

CLAIM = Claim(
    name="pipeline-order",
    source='Tenney, Das and Pavlick 2019, "BERT Rediscovers the Classical NLP Pipeline", section 4',
    hypothesis="a BERT gains what it knows of syntax in lower layers than what it knows of reference",
    varied="the labels of the same names in functions of Python's library: the role in the expression, or what they "
    "refer to (a parameter, a local, an import, ...)",
    controlled="the pretrained model, the words, the probes and their training",
    decides="expected layer of reference minus that of syntax, by the scores of probes of the layers up to each; "
    f"reproduced if its interval lies above 0; undecided where the layers gain less than {_LEAST} of F1",
    decide=decide,
    experiment=EXPERIMENT,
)
