"""Schedules against transformers' and torch's schedulers and against closed forms."""

import math

import pytest
import torch
import transformers

from stemma.training import schedules


def rates(scheduler_of, steps):
    """Learning rates that a torch scheduler gives to updates 0, 1, ... with a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_linear_and_cosine_and_constant_equal_transformers(warmup):
    total = 50
    linear = rates(lambda o: transformers.get_linear_schedule_with_warmup(o, warmup, total), total)
    cosine = rates(lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, total), total)
    constant = rates(lambda o: transformers.get_constant_schedule_with_warmup(o, warmup), total)
    for step in range(total):
        assert schedules.linear(step, total=total, warmup=warmup) == pytest.approx(linear[step], abs=1e-12)
        assert schedules.cosine(step, total=total, warmup=warmup) == pytest.approx(cosine[step], abs=1e-12)
        assert schedules.constant(step, warmup=warmup) == pytest.approx(constant[step], abs=1e-12)


def test_t5_is_the_formula_of_its_paper():
    """1 / sqrt(max(n, 10^4)) for update n, with the recipes' peak of 0.01."""
    for step in (0, 1, 5000, 9_999, 10_000, 10_001, 40_000, 524_288):
        rate = 0.01 * schedules.factor("t5", step, total=2**19, warmup=10_000, final=0.0)
        assert rate == pytest.approx(max(step, 10_000) ** -0.5, rel=1e-12)


def test_cosine_with_final_fraction_equals_torch():
    expected = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1), 41)
    for step, rate in enumerate(expected):
        assert schedules.cosine(step, total=40, final=0.1) == pytest.approx(rate, abs=1e-9)


def test_cosine_stays_at_its_final_fraction_like_gpt3():
    at = {step: schedules.cosine(step, total=260, warmup=10, final=0.1) for step in (10, 135, 260, 261, 300)}
    assert at == pytest.approx({10: 1.0, 135: 0.55, 260: 0.1, 261: 0.1, 300: 0.1})


def test_inverse_square_root_is_the_formula_of_its_paper():
    """hidden^-0.5 * min(n^-0.5, n * warmup^-1.5) for update n from 1; transformers' begins with a rate of 0."""
    for step in (0, 1, 3998, 3999, 4000, 4001, 99_999):
        n = step + 1
        rate = 512**-0.5 * 4000**-0.5 * schedules.inverse_square_root(step, warmup=4000)
        assert rate == pytest.approx(512**-0.5 * min(n**-0.5, n * 4000**-1.5), rel=1e-12)
    expected = rates(lambda o: transformers.get_inverse_sqrt_schedule(o, num_warmup_steps=8), 60)
    for step, rate in enumerate(expected[1:]):
        assert schedules.inverse_square_root(step, warmup=8) == pytest.approx(rate, abs=1e-12)


def test_gpt1_schedule_is_the_formula_of_its_code():
    total, warmup = 1000, 2
    for step in range(total):
        x = step / total
        expected = (x / 0.002 if x <= 0.002 else 1) * (1 - x)
        assert schedules.gpt1(step, total=total, warmup=warmup) == pytest.approx(expected, abs=1e-12)
    assert schedules.gpt1(0, total=total, warmup=warmup) == 0
    assert schedules.gpt1(total, total=total, warmup=warmup) == 0


@pytest.mark.parametrize("name", schedules.NAMES)
def test_factor_finds_every_schedule(name):
    direct = {
        "constant": schedules.constant(30, warmup=10),
        "linear": schedules.linear(30, total=100, warmup=10, final=0.2),
        "cosine": schedules.cosine(30, total=100, warmup=10, final=0.2),
        "inverse_square_root": schedules.inverse_square_root(30, warmup=10),
        "t5": schedules.t5(30, warmup=10),
        "gpt1": schedules.gpt1(30, total=100, warmup=10),
    }[name]
    assert schedules.factor(name, 30, total=100, warmup=10, final=0.2) == direct
    assert schedules.factor(name, 4, total=100, warmup=10, final=0.2) <= (
        1.0 if name == "t5" else 0.5
    )  # T5's does not warm up
    assert math.isfinite(schedules.factor(name, 10_000, total=100, warmup=10, final=0.2))
