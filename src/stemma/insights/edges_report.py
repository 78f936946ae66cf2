"""What edge probing found, as a table for the terminal and as a report with bars for each layer."""

import math
from collections.abc import Mapping
from typing import Any

from stemma.evaluation.intervals import Interval
from stemma.insights.parts import Bars, Cell, Code, Paragraph, Part, Report, Section, Table

Results = Mapping[str, Any]

_NAMES = {
    "mix": "mix of all layers",
    "top": "last layer",
    "lexical": "embeddings (lexical)",
    "convolution": "convolution over embeddings",
    "random": "mix of a random encoder",
}


def scores_table(results: Results) -> Table:
    """Return a row for each encoder: micro-F1 with its interval, and what else there is."""
    encoders = results["encoders"]
    best = max(found["f1"][0] for found in encoders.values())
    extra = [name for name in ("accuracy", "matthews") if all(name in found for found in encoders.values())]
    rows: list[list[Any]] = []
    for name, found in encoders.items():
        f1 = Cell(_percent(found["f1"]), best=len(encoders) > 1 and found["f1"][0] == best)
        rows.append([_NAMES[name], f1, *(100 * found[key] for key in extra)])
    note = "In percent; intervals: bootstrap over the sentences. Accuracy: of the likeliest label."
    return Table(
        ["probe of", "micro-F1", *extra], rows, caption=f"{results['task']}, {results['scored']}", notes=(note,)
    )


def described(results: Results) -> str:
    """Say what was read and what was not, and where in the model the task is solved."""
    said = []
    for name, part in results["coverage"].items():
        text = f"{name}: {part['sentences']:,} sentences, {part['targets']:,} targets, {part['labels']} labels"
        if part["dropped"]:
            text += f" ({part['dropped']:,} targets dropped: {part['words_cut']:,} words behind the model's context"
            text += f", {part['words_lost']:,} of which the tokenizer leaves nothing)"
        if unseen := part["labels_not_in_train"]:
            text += f" (not in train: {', '.join(f'{label} {number}' for label, number in unseen.items())})"
        said.append(text)
    layers = results["layers"]
    said.append(
        f"mixing weights: centre of gravity {layers['centre_of_gravity']:.2f} of 0 to {len(layers['shares']) - 1}, "
        f"{layers['divergence_from_uniform']:.2f} bits from uniform"
    )
    if "expected_layer" in layers:
        said.append(_expected(layers))
    if "control" in results:
        control = results["control"]
        said.append(f"control task: {100 * control['f1']:.2f}; selectivity {100 * control['selectivity']:.2f}")
    if "description_length" in results:
        length = results["description_length"]
        said.append(
            f"minimum description length: {length['bits_per_target']:.3f} bits a target, "
            f"{length['compression']:.2f} times shorter than a bit a decision"
        )
    return "\n".join(said)


def report_of(results: Results, command: str) -> Report:
    """Return the report on one model and task. command: that makes it again."""
    shares = results["layers"]["shares"]
    groups = [str(layer) for layer in range(len(shares))]
    parts: list[Part] = [Paragraph(described(results).replace("\n", "\n\n")), scores_table(results)]
    if "each" in results["layers"]:
        rows = [
            [_percent(alone), _percent(upto)]
            for alone, upto in zip(results["layers"]["each"], results["layers"]["cumulative"], strict=True)
        ]
        caption = "Micro-F1 of a probe of each layer, and of the mix of the layers up to it; 0: the embeddings."
        parts.append(Bars(groups, ["layer alone", "layers up to it"], rows, caption, "micro-F1, %"))
    caption = "How much of the mix of all layers each layer is."
    parts.append(Bars(groups, ["share of the mix"], [[share] for share in shares], caption, "share"))
    labels = [
        [name, *(100 * found[key] for key in ("precision", "recall", "f1")), found["support"]]
        for name, found in sorted(results["by_label"].items(), key=lambda item: -item[1]["support"])
    ]
    columns = ["label", "precision", "recall", "F1", "targets"]
    parts.append(Table(columns, labels, caption="Labels, by the probe of the mix of all layers; in percent."))
    lead = "What a frozen model's layers hold: small probes read labels of spans from them."
    return Report("probe edges", lead, [Section(results["task"], parts), Section("To run it again", [Code(command)])])


def _expected(layers: Mapping[str, Any]) -> str:
    if layers["expected_layer"] is None:
        value = layers["expected_layer_as_it_is"]
        shown = f"{value:.1f}" if math.isfinite(value) else "undefined"
        return f"expected layer: {shown}, which says nothing: the layers gain too little over the embeddings"
    return f"expected layer: {Interval(*layers['expected_layer'])}"


def _percent(interval: list[float]) -> Interval:
    return Interval(*(100 * value for value in interval))
