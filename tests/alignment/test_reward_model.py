"""Reward models: the head of the last token, as transformers' classes have it, and the loss over all pairs."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import model_of, tokenizer_of

from stemma.alignment.comparisons import Comparison, ranked_pairs
from stemma.alignment.conversations import Renderer
from stemma.alignment.ranking import Ranking, encode, numbered_pairs, ranking_loss
from stemma.alignment.reading import reading_of
from stemma.alignment.reward_model import RewardModel, load_reward_model
from stemma.alignment.reward_report import report
from stemma.alignment.score import Scorer
from stemma.errors import InputError
from stemma.families import save as save_model
from stemma.families.growth import with_vocabulary

ROWS = [("the quick", " brown fox"), ("who sees", " the lazy dog in Paris"), ("a", " cat"), ("the quick", " dog")]
PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
ORACLE = PUBLISHED / "reference/ppo/ppo.safetensors"


def reward_model(family):
    torch.manual_seed(1)
    tokenizer = tokenizer_of(family).with_special_tokens(pad_token="<|pad|>")
    model = with_vocabulary(model_of(family), tokenizer.vocabulary)
    reading = reading_of(model, tokenizer)
    reward = RewardModel(model, reading).eval()
    with torch.no_grad():
        reward.head.bias.fill_(0.25)
    return reward, tokenizer, Renderer(model, tokenizer, reading.end)


@pytest.mark.parametrize("family", ["gpt", "mistral", "mixtral"])
def test_transformers_gives_the_same_rewards(family, tmp_path):
    reward, tokenizer, renderer = reward_model(family)
    samples = [renderer.sample(*row) for row in ROWS]
    ours = reward.score(samples)
    reward.save(tokenizer, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.num_labels == 1
    texts = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = texts.pad({"input_ids": [[*one.prompt, *one.response] for one in samples]}, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**rows).logits.squeeze(1)
    torch.testing.assert_close(logits + 0.25, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_reward_model(tmp_path)[0].score(samples), ours)


@pytest.mark.parametrize("family", ["gpt", "glm", "t5"])
def test_a_directory_comes_back_and_its_zero_can_be_moved(family, tmp_path):
    reward, tokenizer, renderer = reward_model(family)
    samples = [renderer.sample(*row) for row in ROWS]
    scores = reward.train().score(samples)
    assert reward.training
    reward.save(tokenizer, tmp_path, centre=float(scores.mean()))
    again, _ = load_reward_model(tmp_path)
    torch.testing.assert_close(again.score(samples), scores - scores.mean())
    torch.testing.assert_close(torch.tensor(Scorer(tmp_path).score(ROWS)), scores - scores.mean())


@pytest.mark.parametrize("family", ["gpt", "glm", "t5"])
def test_a_reward_is_the_head_of_the_last_state(family):
    reward, _, renderer = reward_model(family)
    batch = reward.reading.batch([renderer.sample(*row) for row in ROWS])
    states = reward.reading.states(reward.trunk, batch)
    ends = batch["reads"].cumsum(0) - 1
    expected = states[ends] @ reward.head.weight[0] + 0.25
    torch.testing.assert_close(reward(batch), expected, atol=1e-5, rtol=1e-5)
    assert batch["targets"][ends].tolist() == [-100] * 4 and batch["targets"][ends - 1].eq(renderer.end).all()


def test_the_head_begins_as_in_the_papers_code():
    model = model_of("gpt")
    drawn = torch.cat([RewardModel(model, None).head.weight.flatten() for _ in range(60)])
    drawn = drawn.detach()
    assert float(drawn.std()) == pytest.approx(33**-0.5, rel=0.05) and abs(float(drawn.mean())) < 0.02
    assert RewardModel(model, None).head.bias.item() == 0


def test_what_is_no_reward_model(tmp_path):
    save_model(model_of("gpt"), tokenizer_of("gpt"), tmp_path)
    with pytest.raises(InputError, match="no tensor 'score.weight'"):
        load_reward_model(tmp_path)
    reward, tokenizer, _ = reward_model("gpt")
    reward.head = torch.nn.Linear(32, 2)
    reward.head.bias = torch.nn.Parameter(torch.zeros(1))
    reward.save(tokenizer, tmp_path)
    with pytest.raises(InputError, match=r"'score.weight' is \[2, 32\]"):
        load_reward_model(tmp_path)


def test_a_text_that_is_too_long_cannot_be_scored(tmp_path):
    reward, tokenizer, _ = reward_model("gpt")
    reward.save(tokenizer, tmp_path)
    with pytest.raises(InputError, match="response 2 has .* tokens with its prompt, and the model reads 64"):
        Scorer(tmp_path).score([("a", "b"), ("the dog", " cat" * 60)])


def brute(scores, ranks):
    """The mean of -log sigmoid over all pairs of a prompt."""
    pairs = [(a, b) for a, b in itertools.permutations(range(len(ranks)), 2) if ranks[a] < ranks[b]]
    return sum(math.log1p(math.exp(scores[b] - scores[a])) for a, b in pairs) / len(pairs)


def loss_of(scores, ranks):
    examples = [{"texts": list(row), "pairs": ranked_pairs(row)} for row in ranks]
    kept = [(row, example) for row, example in zip(scores, examples, strict=True) if example["pairs"]]
    pairs, sizes = numbered_pairs([example for _, example in kept])
    flat = torch.cat([torch.as_tensor(row, dtype=torch.float64)[: len(example["texts"])] for row, example in kept])
    return ranking_loss(flat, pairs, sizes) / len(kept)


def test_the_ranking_loss_is_the_mean_over_prompts_of_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    scores, ranks = rng.normal(size=(4, 5)), rng.integers(1, 4, size=(4, 5))
    expected = np.mean([brute(row, rank) for row, rank in zip(scores, ranks, strict=True)])
    assert float(loss_of(scores, ranks.tolist())) == pytest.approx(expected, rel=1e-12)
    order = rng.permutation(5)  # of the answers
    assert float(loss_of(scores[:, order], ranks[:, order].tolist())) == pytest.approx(expected, rel=1e-12)
    moved = scores + rng.normal(size=(4, 1))  # rewards of different prompts are not compared
    assert float(loss_of(moved, ranks.tolist())) == pytest.approx(expected, rel=1e-12)
    pair = loss_of([[1.5, -0.5]], [[1, 2]])
    assert float(pair) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-12)


@pytest.mark.skipif(not ORACLE.is_file(), reason="the numbers are not at hand")
def test_the_ranking_loss_and_its_gradient_are_the_reference_numbers():
    oracle = load_file(ORACLE)
    scores = oracle["rank.scores"].clone().requires_grad_()
    rows = [
        [int(rank) for rank, valid in zip(*row, strict=True) if valid]
        for row in zip(oracle["rank.ranks"], oracle["rank.valid"], strict=True)
    ]
    assert [len(ranked_pairs(row)) for row in rows] == oracle["rank.pairs"].tolist()
    valid = [row[mask] for row, mask in zip(scores, oracle["rank.valid"], strict=True)]
    loss = loss_of(valid, rows)
    loss.backward()
    torch.testing.assert_close(loss, oracle["rank.loss_per_prompt"].reshape(()), atol=1e-12, rtol=0)
    torch.testing.assert_close(scores.grad, oracle["rank.grad_per_prompt"], atol=1e-12, rtol=0)


def test_a_response_is_read_once_however_many_pairs_it_is_in():
    reward, _, renderer = reward_model("gpt")
    comparisons = [
        Comparison("the", (" dog", " cat", " fox", " lazy dog" * 30), ((0, 1), (0, 2), (1, 2), (3, 0))),
        Comparison("a", (" dog", " cat" * 60), ((0, 1),)),
        Comparison("a b", (" dog", " cat"), ((1, 0),)),
    ]
    examples, kept, left_out = encode(comparisons, renderer, reward.reading)
    assert left_out == 2 and [one.pairs for one in kept] == [((0, 1), (0, 2), (1, 2)), ((1, 0),)]
    objective = Ranking(reward.reading)
    batch = objective.collate(examples)
    assert batch["prompts"].tolist() == [3, 2] and len(batch["reads"]) == 5
    loss, sums = objective.loss(reward, batch)
    scores = reward.score([renderer.sample(one.prompt, text) for one in kept for text in one.responses])
    expected = (brute(scores[:3].tolist(), [1, 2, 3]) + brute(scores[3:].tolist(), [2, 1])) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6) and sums["targets"] == 2 and sums["pairs"] == 4
    right = sum(bool(scores[a] > scores[b]) for a, b in ((0, 1), (0, 2), (1, 2), (4, 3)))
    assert int(sums["accuracy/pairs"]) == right


def test_a_reward_model_that_counts_words_is_seen():
    rng = np.random.default_rng(0)
    comparisons = []
    for number in range(60):
        sizes = rng.integers(2, 40, 2)
        better = int(sizes[1] > sizes[0]) if number % 3 else int(rng.integers(2))
        texts = tuple(" ".join(["w"] * size) for size in sizes)
        comparisons.append(Comparison(f"p{number}", texts, ((better, 1 - better),)))
    rewards = [[len(text.split()) / 10 for text in one.responses] for one in comparisons]
    found = report(comparisons, rewards)
    assert found.length_correlation == pytest.approx(1)
    assert found.accuracy.estimate == pytest.approx(found.longer_wins) and found.accuracy.low < found.longer_wins
    noise = report(comparisons, rng.normal(size=(60, 2)).tolist())
    assert abs(noise.length_correlation) < 0.3 and noise.accuracy.low < 0.5 < noise.accuracy.high
    assert json.loads(json.dumps(found.as_dict()))["pairs"] == 60


def test_a_report_by_hand():
    comparisons = [
        Comparison("p", ("a b c d", "a b", "a b c e"), ((0, 1), (0, 2), (1, 2))),
        Comparison("q", ("a", "b c"), ((0, 1),)),
    ]
    rewards = [[2.0, 1.0, 1.0], [0.0, 3.0]]
    found = report(comparisons, rewards)
    # of p: right, right, a tie; of q: wrong
    assert found.accuracy.estimate == pytest.approx((2.5 / 3 + 0) / 2)
    assert found.longer_wins == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert found.accuracy_alike.estimate == 1  # only the second pair is of equal length
    sure = [1 / (1 + math.exp(-margin)) for margin in (0, 1, 3)]
    assert [one[0] for one in found.calibration] == pytest.approx(sure)
    assert [one[1:] for one in found.calibration] == [(0.5, 1), (1.0, 2), (0.0, 1)]
    assert found.calibration_error == pytest.approx((0 + 2 * (1 - sure[1]) + sure[2]) / 4)
