"""The batch of an update is a function of (seed, step), whatever the micro-batches and workers."""

import numpy as np
import pytest
import torch

from stemma.errors import InputError
from stemma.families.gpt.objective import Causal
from stemma.training.batches import Batches, Plan, derived_seed
from stemma.training.recipe import RampRecipe


class Numbered:
    """Sequence i is filled with i."""

    def __len__(self):
        return 10

    def sequence(self, index):
        return np.full(5, index)


class Noisy(Causal):
    """Adds a number drawn from the sample's generator."""

    def example(self, tokens, rng):
        return {"tokens": tokens[:-1], "targets": tokens[1:] + rng.integers(1000)}


def rows(batches, step):
    return torch.cat([batch["targets"] for batch in batches.micro_batches(step)])


def build(**options):
    return Batches(Numbered(), Noisy(separator=0), Plan(6), seed=3, **options)


def test_updates_take_consecutive_samples_again_and_again_the_same():
    batches = build()
    tokens = [batches.micro_batches(step)[0]["tokens"][:, 0].tolist() for step in (0, 1, 5)]
    assert tokens == [list(range(6)), list(range(6, 12)), list(range(30, 36))]
    assert torch.equal(rows(batches, 5), rows(build(), 5))
    assert not torch.equal(rows(batches, 5) - 30, rows(batches, 0))


def test_micro_batches_and_workers_divide_the_same_samples():
    whole = rows(build(), 4)
    assert torch.equal(rows(build(micro_batch=4), 4), whole)
    parts = [rows(build(rank=rank, world=4), 4) for rank in range(4)]
    assert sorted(map(len, parts)) == [1, 1, 2, 2]
    first = int(build().micro_batches(4)[0]["tokens"][0, 0])
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[[i for i in range(6) if (first + i) % 4 == rank]])


def test_rounds_count_the_passes_of_the_busiest_worker():
    for world in (1, 2, 4):
        workers = [build(micro_batch=1, rank=rank, world=world) for rank in range(world)]
        assert {worker.rounds(4) for worker in workers} == {max(len(w.micro_batches(4)) for w in workers)}
    assert build(micro_batch=4).rounds(0) == 2


def test_a_ramp_grows_linearly_and_leaves_no_sample_out():
    plan = Plan(32, RampRecipe(start=8, steps=6))
    sizes = [len(plan.samples(step)) for step in range(9)]
    assert sizes == [8, 12, 16, 20, 24, 28, 32, 32, 32]
    assert [plan.first(step) for step in range(9)] == [sum(sizes[:step]) for step in range(9)]
    assert plan.steps_for(sum(sizes[:8])) == 8
    assert plan.steps_for(sum(sizes[:8]) + 1) == 9
    assert plan.steps_for(1) == 1


def test_more_workers_than_sequences_is_the_users_error():
    with pytest.raises(InputError, match="6 sequences cannot be shared by 7 workers"):
        build(rank=0, world=7)


def test_derived_seeds_differ_in_every_part():
    seeds = {derived_seed(*numbers) for numbers in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1,), (1, 2)]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
