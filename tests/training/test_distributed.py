"""Two workers against one process: the same losses, norms and weights, and checkpoints that either can read."""

import json
import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from small_runs import Uneven, make_model, make_recipe, make_trainer
from torch import nn

from stemma.training.distributed import blocks_of, joined_workers
from stemma.training.pretrain import publisher
from stemma.training.run_directory import claim
from stemma.training.state import newest_state

STEPS = 6


def recipe(steps=STEPS):
    # 6 sequences in micro-batches of 2: two workers have 3 each, one alone 6; ema and uneven targets make it hard.
    return make_recipe(
        training={"steps": steps, "batch": 6, "ema": 0.9, "clip": 0.5},
        execution={"micro_batch": 2},
        evaluation={"every": 2},
        output={"save_every": 2, "log_every": 1},
    )


def train(directory, workers=None, steps=STEPS):
    directory.mkdir(exist_ok=True)
    if workers is None or workers.main:
        claim(directory, recipe())
    if workers is not None:
        workers.barrier()
    saved, _ = newest_state(directory / "training_state")
    model = make_model()
    trainer = make_trainer(
        directory,
        recipe(),
        model=model,
        objective=Uneven(separator=0),
        publish=publisher(model, None),
        workers=workers,
        saved=saved,
    )
    trainer.task = type(trainer.task)(**{**trainer.task.__dict__, "steps": steps})
    trainer.run()


def work(rank, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    workers = joined_workers()
    train(folder / "two", workers)
    train(folder / "one then two", workers)  # goes on with what one process began
    dist.destroy_process_group()


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(120)
def test_two_workers_equal_one_process(tmp_path):
    torch.set_num_threads(1)
    train(tmp_path / "one")
    train(tmp_path / "one then two", steps=4)
    context = multiprocessing.spawn(work, (tmp_path,), nprocs=2, join=False)
    try:
        end = time.monotonic() + 60
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the workers wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two) == STEPS
    for ours, theirs in zip(one, two, strict=True):
        for name in ("loss", "gradient_norm", "held_out_loss", "held_out_targets"):
            assert theirs.get(name) == pytest.approx(ours.get(name), abs=1e-6), name
    for name in ("model.safetensors", "best/model.safetensors"):
        ours, theirs = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4  # AdamW divides by tiny numbers
    train(tmp_path / "two")  # one process reads what two have written
    assert newest_state(tmp_path / "two" / "training_state")[0].record["progress"]["step"] == STEPS
    resumed = metrics(tmp_path / "one then two")
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in one], abs=1e-6)


def test_blocks_are_the_members_of_the_outermost_lists():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2, 2)
            self.encoder = nn.Sequential(nn.ModuleList([nn.Linear(1, 1), nn.ModuleList([nn.Linear(1, 1)])]))
            self.decoder = nn.ModuleList([nn.Linear(1, 1)])

    model = Model()
    assert blocks_of(model) == [*model.encoder[0], *model.decoder]
