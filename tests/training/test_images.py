"""Training on images: the loss against closed forms, teachers, exact resume, higher resolution, the commands."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm_package import import_timm
from torch import Tensor
from typer.testing import CliRunner

import stemma
from stemma.cli import build
from stemma.data.image_augmentation import Mixing
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import read_images
from stemma.errors import InputError
from stemma.families.image_classification import Distillation, ImageClassification
from stemma.families.resnet.model import ResNet, ResNetConfig
from stemma.families.vit.model import ViT, ViTConfig
from stemma.training.image_accuracy import measure, predict, token_cosines
from stemma.training.image_recipe import load_image_recipe
from stemma.training.images import prepare_images, train_images
from stemma.training.teachers import Teacher, load_teacher
from stemma.training.trainer import Trainer

GREY = Preprocessing(8, mean=(0.5,), std=(0.5,))
DIGITS = tuple(map(str, range(10)))
SMALL = "model={preset: tiny, layers: 2, hidden: 16, heads: 2, distilled: true, stochastic_depth: 0.2}"


def recipe(*overrides: str):  # noqa: ANN201
    given = ["training.steps=6", "training.batch=8", "data.limit=40", "evaluation={every: 3}", "execution.device=cpu"]
    return load_image_recipe("vit/tiny", [SMALL, "output={save_every: 2, keep: 1, log_every: 2}", *given, *overrides])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    model = ResNet(ResNetConfig(image_size=8, channels=1, width=8, groups=2, blocks=1, class_names=DIGITS))
    torch.nn.init.normal_(model.head.weight)
    stemma.save(model, None, folder, preprocessing=GREY)
    return folder


def fixed(*logits: list[float]):  # noqa: ANN201
    """A model that says the same of every image, by each of its heads."""
    rows = [torch.tensor(one) for one in logits]

    def model(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(row.expand(len(images), -1) for row in rows)
        return found if len(found) > 1 else found[0]

    return model


def test_targets_are_smoothed_as_timm_does() -> None:
    objective = ImageClassification(GREY, 10, label_smoothing=0.1)
    train, _ = read_images("digits")
    example = objective.example((train, 5), np.random.default_rng(0))
    assert np.array_equal(example["images"], GREY(train.read(5)))
    batch = objective.collate([example, objective.example((train, 6), np.random.default_rng(1))])
    row, label = batch["targets"][0], int(train.labels[5])
    assert row[label] == pytest.approx(1 - 0.1 + 0.1 / 10) and row.sum() == pytest.approx(1)
    assert row[(label + 1) % 10] == pytest.approx(0.1 / 10)
    assert objective.counts(batch) == {"targets": 2}
    again = ImageClassification(GREY, 10, mixing=Mixing(1.0, 0.0)).collate([example, example])
    assert again["targets"].sum() == pytest.approx(2)


def test_the_loss_is_a_mean_over_images_and_a_mixture_of_both_heads() -> None:
    batch = {"images": torch.zeros(2, 1, 8, 8), "targets": torch.tensor([[1.0, 0.0], [0.5, 0.5]])}
    ours, other = [math.log(3), 0.0], [0.0, math.log(4)]  # 3/4, 1/4; and 1/5, 4/5
    base = [-math.log(3 / 4), -0.5 * (math.log(3 / 4) + math.log(1 / 4))]

    def value(distillation: Distillation | None, model) -> float:  # noqa: ANN001
        loss, sums = ImageClassification(GREY, 2, distillation=distillation).loss(model, batch, {"targets": 4})
        assert float(sums["nll"]) == pytest.approx(sum(base))
        return float(loss)

    assert value(None, fixed(ours)) == pytest.approx(sum(base) / 4)
    taught = fixed([0.0, 1.0])
    hard = -math.log(4 / 5)
    assert value(Distillation([taught], alpha=0.3), fixed(ours, other)) == pytest.approx(
        (0.7 * sum(base) + 0.3 * 2 * hard) / 4
    )
    by_class_token = -math.log(1 / 4)
    assert value(Distillation([taught], alpha=0.3), fixed(ours)) == pytest.approx(
        (0.7 * sum(base) + 0.3 * 2 * by_class_token) / 4
    )
    p = torch.softmax(torch.tensor([0.0, 0.5]), 0)
    q = torch.softmax(torch.tensor(other) / 2, 0)
    soft = 4 * float((p * (p / q).log()).sum())
    found = value(Distillation([taught], "soft", 0.1, 2.0), fixed(ours, other))
    assert found == pytest.approx((0.9 * sum(base) + 0.1 * 2 * soft) / 4)
    second = [-math.log(1 / 5), -0.5 * (math.log(1 / 5) + math.log(4 / 5))]
    assert value(None, fixed(ours, other)) == pytest.approx((sum(base) + sum(second)) / 8)


def test_several_teachers_are_heard_by_the_mean_of_what_they_say() -> None:
    batch = {"images": torch.zeros(2, 1, 8, 8), "targets": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    logits = torch.tensor([0.3, 0.1, -0.2])
    says = [torch.tensor([2.0, 0.0, 0.0]), torch.tensor([-4.0, 1.5, 1.0])]
    teachers = [lambda images, row=row: row.expand(len(images), 3) for row in says]

    def value(**options: object) -> float:
        distillation = Distillation(teachers, alpha=1.0, **options)  # type: ignore[arg-type]
        return float(ImageClassification(GREY, 3, distillation=distillation).loss(fixed(logits.tolist()), batch)[0])

    q = torch.log_softmax(logits / 2, 0)
    arithmetic = sum(torch.softmax(row / 2, 0) for row in says) / 2
    geometric = torch.softmax((says[0] + says[1]) / 4, 0)
    for mean, p in (("arithmetic", arithmetic), ("geometric", geometric)):
        expected = 4 * float((p * (p.log() - q)).sum())
        assert value(kind="soft", temperature=2.0, mean=mean) == pytest.approx(expected, rel=1e-5)
    # Together they find the first class likeliest by the one mean, the second by the other.
    hard = -torch.log_softmax(logits, 0)
    assert value(mean="arithmetic") == pytest.approx(float(hard[0]))
    assert value(mean="geometric") == pytest.approx(float(hard[1]))


def test_a_classifier_of_images_is_distilled_from_several(teacher: Path, tmp_path: Path) -> None:
    runner, run = CliRunner(), str(tmp_path / "run")
    few = [SMALL, "training.steps=2", "training.batch=4", "data.limit=8"]
    taught = ["--teacher", str(teacher), "--teacher", str(teacher), "--train", "digits", "--temperature", "4"]
    given = ["distill", "classifier", "vit/tiny", *taught, "--weight", "0.9", "--mean", "geometric"]
    result = runner.invoke(build(), [*given, *few, "--out", run, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["reason"] == "finished"
    wanted = load_image_recipe(tmp_path / "run" / "recipe.yaml")
    assert wanted is not None and wanted.distillation is not None
    soft = wanted.distillation
    assert (soft.kind, soft.alpha, soft.temperature, soft.mean) == ("soft", 0.9, 4.0, "geometric")
    assert soft.teachers == (str(teacher), str(teacher))
    further = ["training.steps=1", "training.batch=2", "data.limit=4", "--out", str(tmp_path / "more"), "--json"]
    result = runner.invoke(build(), ["distill", "classifier", run, *taught, *further])
    assert result.exit_code == 0, result.output
    wrong = runner.invoke(build(), [*given, "--unlabelled", "x.csv"])
    assert isinstance(wrong.exception, InputError) and "--unlabelled: is of texts" in str(wrong.exception)


def test_floating_point_operations_of_a_vit_by_hand() -> None:
    config = ViTConfig(image_size=8, patch_size=2, channels=1, hidden=16, heads=2, layers=2, classes=10)
    tokens = 17
    # Each block: four maps of the width, two of four times the width, scores and values; the last one only for the
    # class token but for queries, keys and values.
    full = 2 * tokens * (4 * 16 * 16 + 8 * 16 * 16) + 4 * tokens * tokens * 16
    last = 2 * tokens * 3 * 16 * 16 + 2 * (16 * 16 + 8 * 16 * 16) + 4 * tokens * tokens * 16
    forward = 2 * 16 * 4 * 16 + full + last + 2 * 16 * 10
    assert ImageClassification(GREY, 10).training_flops(ViT(config), tokens) == 3 * forward


def test_a_teacher_sees_the_images_as_it_wants_them() -> None:
    seen: list[Tensor] = []

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3))

    model = Recorder()
    own = Preprocessing(8, mean=(0.2, 0.3, 0.4), std=(0.5, 0.25, 0.125))
    image = read_images("digits")[0].read(0)
    logits = Teacher(model, own, GREY)(torch.from_numpy(GREY(image))[None])
    assert np.allclose(seen[0][0], own(image.convert("RGB")), atol=1e-5)
    assert not model.training and not logits.requires_grad
    Teacher(model, Preprocessing(16, mean=(0.5,), std=(0.5,)), Preprocessing(8))(torch.zeros(1, 3, 8, 8))
    assert seen[1].shape == (1, 1, 16, 16)


def test_teachers_that_do_not_fit(teacher: Path, tmp_path: Path) -> None:
    assert load_teacher(str(teacher), DIGITS, GREY)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(InputError, match="in another order"):
        load_teacher(str(teacher), DIGITS[::-1], GREY)
    with pytest.raises(InputError, match="other classes than the data: without 'x'"):
        load_teacher(str(teacher), ("x", "1"), GREY)
    stemma.save(ResNet(ResNetConfig(channels=1, width=8, groups=2, blocks=1)), None, tmp_path, preprocessing=GREY)
    with pytest.raises(InputError, match="knows 10 classes, and the data has 2"):
        load_teacher(str(tmp_path), ("x", "y"), GREY)
    with pytest.raises(InputError, match="timm gives no such model|needs timm"):
        load_teacher("timm:no_such_net", DIGITS, GREY)


def test_a_teacher_of_timm_with_weights_of_ones_own(tmp_path: Path) -> None:
    timm = import_timm()
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    teacher = load_teacher(f"timm:resnet10t={tmp_path / 'net.pth'}", DIGITS, GREY)
    size, mean, std = net.pretrained_cfg["input_size"][-1], net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    grey = torch.full((1, 1, 8, 8), 0.4)  # 0.7 of white
    seen = torch.stack([torch.full((size, size), (0.7 - one) / other) for one, other in zip(mean, std, strict=True)])
    with torch.no_grad():
        assert (teacher(grey) - net(seen[None])).abs().max() < 1e-4
    with pytest.raises(InputError, match="timm gives no such model"):
        load_teacher(f"timm:resnet10t={tmp_path / 'none.pth'}", DIGITS, GREY)


def test_a_killed_run_ends_as_an_undisturbed_one(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(f"distillation={{teacher: {teacher}}}", "training.ema=0.9")
    assert train_images(wanted, tmp_path / "whole").reason == "finished"
    update = Trainer._update

    def broken(self: Trainer, *batch: object) -> None:
        if self.progress.step == 5:
            raise KeyboardInterrupt
        update(self, *batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", broken)
        train_images(wanted, tmp_path / "killed")
    assert train_images(wanted, tmp_path / "killed").progress.step == 6
    whole, killed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    with pytest.raises(InputError, match="another recipe"):
        train_images(recipe(), tmp_path / "killed")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert "distillation_loss" in lines[0] and "held_out_token_cosine" in lines[-1]


def test_going_on_at_a_higher_resolution_and_with_another_size_of_batch(tmp_path: Path) -> None:
    train_images(recipe(), tmp_path / "run")
    model = stemma.load(tmp_path / "run")
    assert model.config.class_names == DIGITS and Preprocessing.load(tmp_path / "run", channels=1) == Preprocessing(
        8, 8, mean=(0.5,), std=(0.5,)
    )
    further = load_image_recipe(
        "vit/finetune",
        [f"start={tmp_path / 'run'}", "model.image_size=12", "training.steps=1", "training.batch=4", "data.limit=4"],
    )
    assert further is not None
    prepared = prepare_images(further)
    assert prepared.task.model.config.image_size == 12 and prepared.preprocessing.size == 12
    assert prepared.summary["learning_rate"] == pytest.approx(5e-6 * 4 / 512)
    stemma.save(ResNet(ResNetConfig(channels=1, width=8, groups=2)), None, tmp_path / "net", preprocessing=GREY)
    with pytest.raises(InputError, match="is a ResNet, expected a ViT"):
        prepare_images(further.model_copy(update={"start": str(tmp_path / "net")}))
    with pytest.raises(InputError, match=r"model\.hidden: unknown key"):
        load_image_recipe("vit/finetune", [f"start={tmp_path / 'run'}", "model.hidden=12"])


def test_recipes_say_what_is_wrong_in_them() -> None:
    for override, message in (
        ("augmentation.mixop=1", r"augmentation\.mixop: unknown key \(did you mean 'mixup'\?\)"),
        ("model.hiden=1", r"model\.hiden: unknown key \(did you mean 'hidden'\?\)"),
        ("distillation={kind: hard}", r"distillation\.teacher: is missing"),
        ("augmentation.crop=[2, 1]", r"augmentation\.crop: .*two positive numbers, the smaller one first"),
        ("preprocessing.std=[0]", r"preprocessing\.std"),
        ("training.length=7", r"training\.length is of texts, expected null"),
        ("evaluation.tokens=7", r"evaluation\.tokens is of texts, expected null"),
        ("model.heads=0", r"model: a size is 0, expected 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(override)
    assert load_image_recipe("gpt/tiny") is None
    with pytest.raises(InputError, match="2 numbers for 1 channels"):
        prepare_images(recipe("preprocessing.mean=[0.1, 0.2]"))


@pytest.mark.parametrize("name", ["deit-ti", "deit-s", "deit-b", "vit-b", "vit-l"])
def test_published_recipes_have_the_published_rates(name: str) -> None:
    found = load_image_recipe(f"vit/{name}")
    assert found is not None
    assert found.training.scaled.learning_rate == pytest.approx(1e-3 if name.startswith("deit") else 3e-3)


def test_accuracies_are_those_of_the_heads() -> None:
    torch.manual_seed(0)
    model = ViT(
        ViTConfig(image_size=8, patch_size=2, channels=1, hidden=16, heads=2, layers=2, classes=10, distilled=True)
    )
    _, test = read_images("digits")
    assert test is not None
    few = test.selected(range(50))
    heads = predict(model.eval(), few, GREY, batch=16)
    with torch.no_grad():
        whole = model(torch.from_numpy(np.stack([GREY(few.read(n)) for n in range(50)])))
    found = measure(model, few, GREY)
    labels = few.labels
    assert found.metrics["accuracy"] == pytest.approx((whole.argmax(-1).numpy() == labels).mean())
    for name in ("class", "distillation"):
        assert found.metrics[f"{name}_accuracy"] == pytest.approx((heads[name].argmax(-1).numpy() == labels).mean())
    cosines = token_cosines(model, few, GREY)
    one, two = (
        token.detach().flatten() for token in (model.embeddings.class_token, model.embeddings.distillation_token)
    )
    assert len(cosines) == 3 and cosines[0] == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-5)


def test_the_commands(tmp_path: Path) -> None:
    runner, run = CliRunner(), str(tmp_path / "run")
    small = [SMALL, "training.steps=2", "training.batch=4", "data.limit=8"]

    def said(*arguments: str, code: int = 0) -> SimpleNamespace:
        result = runner.invoke(build(), list(arguments))
        assert result.exit_code == code, result.output
        return SimpleNamespace(**json.loads(result.stdout.strip().splitlines()[-1]))

    assert said("pretrain", "vit/tiny", *small, "--dry-run", "--json").images == 8
    assert said("pretrain", "vit/tiny", *small, "--out", run, "--json").reason == "finished"
    found = said("evaluate", run, "digits", "--json")
    assert found.examples == 797 and set(found.metrics) >= {"accuracy", "class_accuracy", "distillation_accuracy"}
    further = ["model.image_size=12", "training.steps=1", "training.batch=2", "data.limit=4"]
    said("finetune", run, "--train", "digits", *further, "--out", str(tmp_path / "large"), "--json")
    assert stemma.load(tmp_path / "large").config.image_size == 12
    page = tmp_path / "look.html"
    assert runner.invoke(build(), ["look", run, "digits", "--count", "2", "--out", str(page)]).exit_code == 0
    assert page.read_text().count("<img") == 2 * 7 + 2 * 3
    wrong = runner.invoke(build(), ["evaluate", run, "digits", "--field", "body"])
    assert isinstance(wrong.exception, InputError) and "reads images" in str(wrong.exception)
