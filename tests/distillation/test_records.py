"""What teachers think on disk: the loss of k + 1 outcomes, and one line for what does not belong together."""

import pytest
import torch

from stemma.distillation.linear_divergence import SoftLoss, linear_divergence
from stemma.distillation.records import Records, record_of, targets_of_records
from stemma.errors import InputError
from stemma.layers.soft_targets import soften
from stemma.training.progress import Silent


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HIDDEN, WEIGHT, TEACHER = normal(0, 50, 8), normal(1, 100, 8), 2 * normal(2, 50, 100)
TARGETS = torch.arange(50)


def loss_and_gradient(teacher, kind="forward", temperature=2.0):
    hidden = HIDDEN.clone().requires_grad_()
    loss = linear_divergence(hidden, WEIGHT, teacher, TARGETS, SoftLoss(kind, temperature=temperature), divisor=50)[0]
    return float(loss), torch.autograd.grad(loss, hidden)[0]


@pytest.mark.parametrize("kept", [None, 100, 1000])
def test_a_whole_record_is_the_teacher(kept):
    log_p = soften(TEACHER, 2.0)
    loss, gradient = loss_and_gradient(lambda place, q: log_p[place])
    stored, approximate = loss_and_gradient(targets_of_records(record_of(log_p, kept), 2.0))
    assert stored == pytest.approx(loss, abs=1e-3)
    assert float(torch.cosine_similarity(gradient.flatten(), approximate.flatten(), dim=0)) > 0.9999


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_rest_is_one_outcome(kind):
    log_p = soften(TEACHER, 2.0)
    record = record_of(log_p, 10)
    assert record["soft_ids"].shape == (50, 10) and record["soft_rest"].shape == (50,)
    loss, gradient = loss_and_gradient(targets_of_records(record, 2.0), kind)
    # The same, over eleven outcomes.
    hidden = HIDDEN.clone().requires_grad_()
    log_q = (hidden @ WEIGHT.T / 2).log_softmax(-1)
    ids = log_p.topk(10).indices

    def outcomes(values):
        return torch.cat([values.gather(1, ids), (1 - values.gather(1, ids).exp().sum(1, keepdim=True)).log()], 1)

    p, q = outcomes(log_p).double(), outcomes(log_q).double()
    m = (0.5 * p.exp() + 0.5 * q.exp()).log()
    each = {
        "forward": p.exp() * (p - q),
        "reverse": q.exp() * (q - p),
        "jsd": 0.5 * p.exp() * (p - m) + 0.5 * q.exp() * (q - m),
    }[kind]
    expected = 4 * each.sum() / 50
    assert loss == pytest.approx(float(expected), abs=2e-3)
    theirs = torch.autograd.grad(expected, hidden)[0]
    assert float(torch.cosine_similarity(gradient.flatten(), theirs.flatten(), dim=0)) > 0.9999
    if kind == "forward":
        assert loss < loss_and_gradient(lambda place, student: log_p[place])[0]


def test_parts_are_made_once_and_read_by_number(tmp_path):
    made = []

    def think(numbers):
        made.extend(numbers)
        return [record_of(soften(normal(number, 1 + number % 3, 20)), 4) for number in numbers]

    records = Records(tmp_path / "r", {"teachers": "a"}, 300)
    records.compute(think, Silent())
    assert made == list(range(300))
    (tmp_path / "r" / "part-00001.safetensors").unlink()
    again = Records(tmp_path / "r", {"teachers": "a"}, 300)
    again.compute(think, Silent())
    assert made[300:] == list(range(256, 300))
    for number in (0, 5, 255, 256, 299):
        expected = think([number])[0]
        found = again.record(number)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(InputError, match="what teachers thought with other teachers; delete the folder"):
        Records(tmp_path / "r", {"teachers": "b"}, 300)
