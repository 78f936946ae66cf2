"""The loop against plain PyTorch: losses, gradients and updates, accumulation, averages, stopping."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from stemma.errors import Diverged
from stemma.training.batches import Batches, Plan
from stemma.training.optimizer import adamw


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal_weights(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


def plain_training(tiny, recipe, steps):
    """The same training in a few lines of PyTorch with its own cross-entropy and clipping."""
    model = tiny.model()
    optimizer = adamw(model, learning_rate=0.01, weight_decay=recipe.training.weight_decay)
    batches = Batches(tiny.sentences(), tiny.uneven(separator=0), Plan(recipe.training.batch), seed=recipe.seed)
    losses, norms = [], []
    for step in range(steps):
        batch = torch.utils.data.default_collate(batches.micro_batches(step))
        batch = {name: tensor[0] for name, tensor in batch.items()}
        from stemma.layers.masks import Mask

        logits = model(batch["tokens"], mask=Mask(causal=True, document_ids=batch["document_ids"]))
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip)))
        optimizer.step()
        losses.append(loss.item())
    return model, losses, norms


@pytest.mark.parametrize("micro_batch", [None, 3, 1])
def test_training_equals_plain_pytorch_with_uneven_micro_batches(tiny, tmp_path, micro_batch):
    recipe = tiny.recipe(training={"steps": 6, "batch": 8, "clip": 0.5}, execution={"micro_batch": micro_batch})
    trainer = tiny.trainer(tmp_path, recipe, objective=tiny.uneven(separator=0))
    trainer.run()
    expected, losses, norms = plain_training(tiny, recipe, 6)
    # Fused AdamW divides by sqrt(second moment): rounding in tiny gradients grows, hence 1e-4 on the weights.
    assert_equal_weights(weights(trainer.model), weights(expected), 1e-4)
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(losses, abs=2e-6)
    assert [line["gradient_norm"] for line in lines(tmp_path)] == pytest.approx(norms, rel=1e-4)


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(tiny, tmp_path):
    gradients = []
    for micro_batch in (None, 3):
        recipe = tiny.recipe(training={"batch": 8}, execution={"micro_batch": micro_batch})
        trainer = tiny.trainer(tmp_path / str(micro_batch), recipe, objective=tiny.uneven(separator=0))
        parts = trainer.batches.micro_batches(0)
        trainer._backward(parts, trainer._totals(parts, False))
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()})
    assert_equal_weights(*gradients, tolerance=1e-6)


def test_learning_rate_follows_the_schedule_from_update_0(tiny, tmp_path):
    schedule = {"name": "linear", "warmup": 2, "final": 0.0}
    trainer = tiny.trainer(tmp_path, tiny.recipe(training={"steps": 6, "schedule": schedule}))
    trainer.run()
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_the_average_is_what_is_evaluated_and_published_and_training_goes_on_from_the_weights(tiny, tmp_path):
    published = {}
    recipe = tiny.recipe(training={"ema": 0.9}, evaluation={"every": 1})
    trainer = tiny.trainer(
        tmp_path / "with", recipe, publish=lambda tensors, path: published.update({path.name: dict(tensors)})
    )
    average, history = weights(trainer.model), []
    step = trainer._step
    trainer._step = lambda *arguments: (step(*arguments), history.append(weights(trainer.model)))
    trainer.run()
    for number, now in enumerate(history, 1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    assert_equal_weights(published["with"], average, 1e-6)
    plain = tiny.trainer(tmp_path / "without", tiny.recipe())
    plain.run()
    assert_equal_weights(weights(plain.model), weights(trainer.model))
    assert lines(tmp_path / "with")[-1]["held_out_loss"] != lines(tmp_path / "without")[-1]["held_out_loss"]


def test_held_out_numbers_are_those_of_plain_pytorch(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.recipe(evaluation={"every": 8}))
    trainer.run()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in tiny.held_out().batches():
            logits = trainer.model.eval()(batch["tokens"])
            total += float(F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum"))
            count += batch["targets"].numel()
    last = lines(tmp_path)[-1]
    assert last["held_out_targets"] == count
    assert last["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert last["held_out_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert last["held_out_bits_per_byte"] == pytest.approx(total / math.log(2) / 300, rel=1e-5)


def test_dropout_is_a_function_of_the_update(tiny, tmp_path):
    runs = []
    for name in "ab":
        trainer = tiny.trainer(tmp_path / name, tiny.recipe(), model=tiny.model(dropout=0.5))
        torch.manual_seed(ord(name))  # whatever state the generator is in
        trainer.run()
        runs.append(weights(trainer.model))
    assert_equal_weights(*runs)
    without = tiny.trainer(tmp_path / "c", tiny.recipe())
    without.run()
    assert any(not torch.equal(runs[0][name], value) for name, value in weights(without.model).items())


def test_recomputed_activations_change_nothing(tiny, tmp_path):
    runs = []
    for wanted in (False, True):
        recipe = tiny.recipe(execution={"checkpoint_activations": wanted})
        trainer = tiny.trainer(tmp_path / str(wanted), recipe, model=tiny.model(dropout=0.1))
        calls = [0]
        trainer.model.blocks[0].attention.register_forward_hook(
            lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1)
        )
        trainer.run()
        runs.append((weights(trainer.model), calls[0]))
    assert_equal_weights(runs[0][0], runs[1][0])
    assert runs[1][1] == runs[0][1] + 8  # each of the 8 updates computes the block once more


def test_bfloat16_keeps_float32_weights_and_learns_the_same(tiny, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = tiny.trainer(tmp_path / precision, tiny.recipe(execution={"precision": precision}))
        trainer.run()
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        losses.append([line["loss"] for line in lines(tmp_path / precision)])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_the_run_stops_when_the_held_out_loss_no_longer_falls(tiny, tmp_path):
    recipe = tiny.recipe(training={"steps": 50, "learning_rate": 1e-12}, evaluation={"every": 2, "patience": 3})
    trainer = tiny.trainer(tmp_path, recipe)
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.1, 1.0])
    evaluated = trainer.progress.evaluated
    trainer.progress.evaluated = lambda result, patience: evaluated(type(result)(next(losses), 1.0, None, 1), patience)
    outcome = trainer.run()
    assert (outcome.reason, outcome.progress.step, outcome.progress.best_step) == ("stopped early", 10, 4)


class Poisoned:
    """Loss that is not finite at the given updates."""

    def __init__(self, objective, calls, value=float("nan")):
        self.objective, self.poisoned, self.value, self.call = objective, calls, value, 0

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def loss(self, model, batch, totals=None):
        loss, metrics = self.objective.loss(model, batch, totals)
        if totals is None:
            return loss, metrics
        self.call += 1
        return (loss * self.value if self.call in self.poisoned else loss), metrics


def test_an_update_with_a_loss_that_is_not_finite_is_not_made(tiny, tmp_path):
    objective = Poisoned(tiny.uneven(separator=0), {3, 4}, float("inf"))
    trainer = tiny.trainer(tmp_path, tiny.recipe(training={"steps": 4}), objective=objective)
    trainer.run()
    assert trainer.progress.skipped == 2
    clean = tiny.trainer(tmp_path / "two", tiny.recipe(training={"steps": 2}), objective=tiny.uneven(separator=0))
    clean.run()
    assert_equal_weights(weights(trainer.model), weights(clean.model))


def test_too_many_in_a_row_end_the_run_with_a_report_and_the_last_good_checkpoint(tiny, tmp_path):
    objective = Poisoned(tiny.uneven(separator=0), {5, 6, 7})
    recipe = tiny.recipe(training={"steps": 20}, output={"save_every": 1, "keep": 9})
    trainer = tiny.trainer(tmp_path, recipe, objective=objective)
    with pytest.raises(Diverged) as caught:
        trainer.run()
    report = str(caught.value)
    for word in (
        "update 7",
        "loss nan",
        "learning rate 0.01",
        "token_embedding.weight nan",
        "samples 24 to 27",
        "3 in",
    ):
        assert word in report, report
    assert sorted(path.name for path in (tmp_path / "training_state").iterdir()) == [
        f"step-{step:08d}" for step in (1, 2, 3, 4)
    ]
    events = [line for line in lines(tmp_path) if line.get("event") == "not finite"]
    assert [line["step"] for line in events] == [5, 6, 7]


def test_an_update_without_targets_is_skipped(tiny, tmp_path):
    class Empty(tiny.uneven):
        def example(self, tokens, rng):
            example = super().example(tokens, rng)
            return {**example, "targets": example["targets"] * 0 - 100}

    trainer = tiny.trainer(tmp_path, tiny.recipe(), objective=Empty(separator=0))
    before = weights(trainer.model)
    trainer.run()
    assert trainer.progress.skipped == 8
    assert_equal_weights(before, weights(trainer.model))


@pytest.mark.slow
def test_compiled_blocks_learn_the_same_under_the_same_names(tiny, tmp_path):
    runs = []
    for wanted in (False, True):
        trainer = tiny.trainer(tmp_path / str(wanted), tiny.recipe(execution={"compile": wanted}))
        trainer.run()
        runs.append(weights(trainer.model))
    assert_equal_weights(*runs, tolerance=1e-4)
    assert any(not torch.equal(runs[0][name], runs[1][name]) for name in runs[0])  # so it was another code
