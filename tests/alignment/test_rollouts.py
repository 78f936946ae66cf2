"""What the engine writes is what the training reads: the same tokens, ends and probabilities."""

import numpy as np
import pytest
import torch
from policies import WRITERS, encoded, policy_of, with_reading

from stemma.alignment.experience import divide, mask_of, recollect, spread
from stemma.alignment.reading import Sample
from stemma.alignment.rollouts import require_room, write_responses
from stemma.errors import InputError


def rollout(model, tokenizer, **options):
    prompts = encoded(tokenizer)
    how = {"seeds": range(len(prompts)), "longest": [12] * len(prompts), **options}
    return prompts, write_responses(model, tokenizer, prompts, **how)


def parts_of(policy, prompts, responses, minibatches=1, most_rows=None):
    samples = [Sample(prompt, one.tokens) for prompt, group in zip(prompts, responses, strict=True) for one in group]
    dealt = divide(
        policy.reading,
        samples,
        minibatches=minibatches,
        most_rows=most_rows,
        rng=np.random.default_rng(0),
        device=torch.device("cpu"),
    )
    return samples, dealt


@pytest.mark.parametrize("family", WRITERS)
def test_log_probabilities_of_engine_and_training_agree(family):
    model, tokenizer = policy_of(family)
    prompts, responses = rollout(model, tokenizer, samples=2)
    policy = with_reading(model, tokenizer, reference=model)
    samples, dealt = parts_of(policy, prompts, responses, minibatches=2, most_rows=3)
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    recollection = recollect(policy, [part for minibatch in dealt for part in minibatch], mask)
    written = torch.tensor([score for group in responses for one in group for score in one.log_probabilities])
    torch.testing.assert_close(recollection.log_probabilities[mask], written, rtol=0, atol=1e-5)
    assert written.std() > 0.1  # not all alike


def test_the_same_seeds_give_the_same_texts_and_others_others():
    model, tokenizer = policy_of("gpt")
    _, first = rollout(model, tokenizer)
    _, again = rollout(model, tokenizer)
    _, other = rollout(model, tokenizer, seeds=range(10, 15))
    assert first == again
    assert first != other


def test_samples_of_a_prompt_differ_and_stand_together():
    model, tokenizer = policy_of("gpt")
    _, responses = rollout(model, tokenizer, samples=3)
    assert [len(group) for group in responses] == [3] * 5
    assert len({tuple(one.tokens) for one in responses[0]}) == 3


def test_a_rollout_follows_the_weights():
    model, tokenizer = policy_of("gpt")
    _, before = rollout(model, tokenizer)
    with torch.no_grad():
        model.token_embedding.weight.mul_(0.1)
    _, after = rollout(model, tokenizer)
    assert before != after


def test_ends_and_lengths():
    model, tokenizer = policy_of("gpt")
    longest = [40, 1, 30, 2, 40]
    _, responses = rollout(model, tokenizer, longest=longest)
    for (one,), most in zip(responses, longest, strict=True):
        assert one.ended == (one.tokens[-1] == tokenizer.separator)
        assert len(one.tokens) == len(one.log_probabilities) <= most
        assert one.text == tokenizer.decode(one.tokens)
    _, stopped = rollout(model, tokenizer, longest=[40] * 5, stop=["e"])
    assert any(one.ended and one.tokens[-1] != tokenizer.separator and "e" not in one.text for (one,) in stopped)


def test_temperature_divides_the_logits_everywhere():
    model, tokenizer = policy_of("gpt")
    policy = with_reading(model, tokenizer, reference=model, temperature=0.5)
    prompts, responses = rollout(model, tokenizer, temperature=0.5)
    samples, ((part,),) = parts_of(policy, prompts, responses)
    row = int(part.rows[0])
    tokens = torch.tensor([[*samples[row].prompt, *samples[row].response]])
    expected = (model(tokens)[0] / 0.5).log_softmax(-1)[len(samples[row].prompt) - 1 : -1]
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    found = spread(policy.log_probabilities(part), mask[part.rows])[0, : len(samples[row].response)]
    wanted = expected.gather(1, torch.tensor(samples[row].response).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_entropy_and_divergence_are_sums_over_the_vocabulary():
    model, tokenizer = policy_of("gpt")
    other, _ = policy_of("gpt", scale=6.0)
    prompts, responses = rollout(model, tokenizer)
    policy = with_reading(model, tokenizer, reference=other)
    samples, ((part,),) = parts_of(policy, prompts, responses)
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    found = recollect(policy, [part], mask)
    tokens = torch.tensor([[*samples[0].prompt, *samples[0].response]])
    ours, theirs = (m(tokens)[0, len(samples[0].prompt) - 1 : -1].log_softmax(-1) for m in (model, other))
    length = len(samples[0].response)
    torch.testing.assert_close(found.entropy[0, :length], -(ours.exp() * ours).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.kl[0, :length], (ours.exp() * (ours - theirs)).sum(-1), rtol=1e-4, atol=1e-4)
    assert found.kl[mask].min() > 0 and found.kl[~mask].eq(0).all()


@pytest.mark.parametrize("family", WRITERS)
def test_what_is_read_twice_is_equal_to_the_last_bit(family):
    """So that ratios are exactly 1 before the first update, and the divergence from an equal reference exactly 0."""
    model, tokenizer = policy_of(family)
    prompts, responses = rollout(model, tokenizer)
    policy = with_reading(model, tokenizer, reference=model)
    samples, dealt = parts_of(policy, prompts, responses, minibatches=2)
    mask = mask_of([len(sample.response) for sample in samples], torch.device("cpu"))
    parts = [part for minibatch in dealt for part in minibatch]
    found = recollect(policy, parts, mask)
    assert found.kl.eq(0).all() and found.reference.equal(found.log_probabilities)
    for part in parts:
        again = spread(policy.log_probabilities(part), mask[part.rows])
        assert again.requires_grad and again.equal(found.log_probabilities[part.rows])


def test_minibatches_hold_every_response_once():
    model, tokenizer = policy_of("gpt")
    prompts, responses = rollout(model, tokenizer, samples=3)
    samples, dealt = parts_of(with_reading(model, tokenizer, model), prompts, responses, minibatches=4, most_rows=2)
    rows = [row for minibatch in dealt for part in minibatch for row in part.rows.tolist()]
    assert sorted(rows) == list(range(15)) and len(dealt) == 4
    assert max(len(part.rows) for minibatch in dealt for part in minibatch) == 2
    assert rows != sorted(rows)


def test_a_response_needs_room():
    model, tokenizer = policy_of("gpt", context=16)
    require_room(model, encoded(tokenizer), 16 - max(map(len, encoded(tokenizer))))
    with pytest.raises(InputError, match=r"response of 16 \(rollout.longest\) are more than the model's context of 16"):
        require_room(model, encoded(tokenizer), 16)
    require_room(policy_of("t5")[0], encoded(policy_of("t5")[1]), 10_000)
