"""Specialists of classes that are confused help a generalist (Hinton, Vinyals and Dean 2015, section 5)."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stemma.distillation.specialists import Specialist, combine, confusion_clusters, dustbin_correction
from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.digits import Examples, fit, logits_of, network
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.parts import Table
from stemma.insights.workers import Report

INPUTS = 24


def draw(classes: Tensor, count: int, noise: float, generator: torch.Generator) -> Examples:
    """Return examples of classes that are points, float32 [classes, INPUTS], with Gaussian noise around them."""
    labels = torch.randint(len(classes), (count,), generator=generator)
    return Examples(classes[labels] + noise * torch.randn(count, INPUTS, generator=generator), labels)


def work(job: Job, report: Report) -> Measures:
    """Train a generalist, and what the arm adds to it."""
    settings, seed = job.settings, job.seed
    generator = torch.Generator().manual_seed(seed)
    groups, size = settings["groups"], settings["size"]
    count = groups * size
    centres = 3 * torch.randn(groups, 1, INPUTS, generator=generator)
    places = (centres + settings["spread"] * torch.randn(groups, size, INPUTS, generator=generator)).flatten(0, 1)
    train, held_out, test = (draw(places, settings[part], settings["noise"], generator) for part in _PARTS)
    longer = job.arm == "longer"
    # As many examples as the generalist and all specialists see.
    steps = settings["steps"] + (groups * settings["specialist_steps"] if longer else 0)
    generalist = fit(network(INPUTS, settings["width"], count, seed), train, steps=steps, seed=seed)
    answers = logits_of(generalist, test.images).softmax(1)
    found: list[list[int]] = []
    if job.arm == "specialists":
        predictions = logits_of(generalist, held_out.images).softmax(1)
        found = confusion_clusters(predictions.numpy(), groups, size=size, seed=seed)
        specialists, outputs = [Specialist(classes) for classes in found], []
        for number, one in enumerate(specialists, 1):
            report((job.name, "specialists", number, len(found), {}))
            outputs.append(_opinion(generalist, one, train, test, settings["specialist_steps"], seed))
        answers = combine(answers, specialists, outputs)
    right = float((answers.argmax(1) == test.labels).double().mean())
    return {"accuracy": right, "clusters": json.dumps([[[one // size, one % size] for one in part] for part in found])}


_PARTS = ("train", "held_out", "test")


def _opinion(
    generalist: nn.Module, specialist: Specialist, train: Examples, test: Examples, steps: int, seed: int
) -> Tensor:
    """Train a specialist from the generalist's weights; return its probabilities on the test, the dustbin corrected."""
    layers: Sequence[nn.Linear] = [layer for layer in generalist.modules() if isinstance(layer, nn.Linear)]
    last, own = layers[-1], list(specialist.classes)
    rest = [one for one in range(last.out_features) if one not in own]
    model = network(INPUTS, last.in_features, len(own) + 1, seed)
    ours = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for to, of in zip(ours[:-1], layers[:-1], strict=True):
            to.load_state_dict(of.state_dict())
        ours[-1].weight.copy_(torch.cat([last.weight[own], last.weight[rest].mean(0, keepdim=True)]))
        ours[-1].bias.copy_(torch.cat([last.bias[own], last.bias[rest].mean(0, keepdim=True)]))
    labels = specialist.labels(train.labels, last.out_features)
    inside, outside = (labels < len(own)).nonzero().flatten(), (labels == len(own)).nonzero().flatten()
    # Half of what it sees is its own.
    drawn = torch.randperm(len(outside), generator=torch.Generator().manual_seed(seed))[: len(inside)]
    chosen = torch.cat([inside, outside[drawn]])
    fit(model, Examples(train.images[chosen], labels[chosen]), steps=steps, seed=seed, rate=1e-3)
    logits = logits_of(model, test.images).clone()
    logits[:, -1] += dustbin_correction(len(inside) / len(labels), len(inside) / len(chosen))
    return logits.softmax(1)


def decide(results: Results) -> Decision:
    """Decide by accuracy against a generalist that was trained for as long as all of them."""
    effect = difference(results, "specialists", "longer", lambda m: m["accuracy"])
    plain = difference(results, "specialists", "generalist", lambda m: m["accuracy"])
    details = {
        "specialists minus the generalist they began with": plain,
        "accuracy of the generalist": over_seeds(values(results, "generalist", lambda m: m["accuracy"])),
    }
    return Decision(by_sign(effect), effect, details=details)


def charts(results: Results) -> list[Table]:
    """Show which classes were put together with the first seed: a group's classes are alike."""
    found = json.loads(results["measures"][f"specialists-{results['plan']['seeds'][0]}"]["clusters"])
    rows = [
        (str(number), " ".join(f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[group % 26]}{place}" for group, place in part))
        for number, part in enumerate(found, 1)
    ]
    caption = "what the generalist confuses, seed 1: classes of one letter are alike"
    return [Table(("specialist", "its classes"), rows, caption=caption)]


EXPERIMENT = Experiment(
    arms={"generalist": "generalist", "longer": "generalist, longer", "specialists": "with specialists"},
    scales={
        "small": {
            "groups": 12, "size": 5, "spread": 0.8, "noise": 1.0, "train": 6000, "held_out": 1000, "test": 4000,
            "width": 32, "steps": 1500, "specialist_steps": 300,
        }
    },
    work=work,
    columns=(Column("accuracy", "accuracy", lambda m: m["accuracy"]),),
    charts=charts,
)  # fmt: skip

CLAIM = Claim(
    name="specialists",
    source="Hinton, Vinyals and Dean 2015, section 5 (JFT: 25.0 % to 26.1 % with 61 specialists)",
    hypothesis="networks that tell apart what a generalist confuses, found without labels, make its answers better",
    varied="a generalist; one that is trained for as long as all the specialists; one with specialists",
    controlled="60 synthetic classes in 12 groups that are alike, examples, network, seeds",
    decides="accuracy on the test: with specialists minus the generalist that is trained longer; reproduced if the "
    "interval lies above 0",
    decide=decide,
    experiment=EXPERIMENT,
)
