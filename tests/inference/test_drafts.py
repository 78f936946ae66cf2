"""Guesses change how fast a text comes, not the text."""

import pytest
import torch

from stemma import families
from stemma.errors import InputError
from stemma.inference.drafts import DraftModel, NGramLookup, drafter_named
from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling

PROMPTS = ["the quick brown fox", "lazy", "jumps over the lazy dog " * 3, "the lazy dog jumps fox " * 4]
WINDOWS = {"layers": 4, "attention_pattern": ("dense", "banded"), "band": 20, "context": 160}


def drafters(make_model):
    return {
        "the same text": lambda: NGramLookup(),
        "the model itself": lambda: DraftModel(make_model(scale=6, **WINDOWS), guesses=3),
        "another model": lambda: DraftModel(make_model(3, scale=6, context=160, layers=1)),
        "one with little memory": lambda: DraftModel(make_model(scale=6, context=160), memory=0),
    }


@pytest.mark.parametrize("name", ["the same text", "the model itself", "another model", "one with little memory"])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_texts_are_the_same(make_model, tokenizer, name, temperature):
    model = make_model(scale=6, **WINDOWS)
    requests = [
        Request(tokenizer.encode(prompt), 60, Sampling(temperature, top_k=8), samples=2, seed=1, log_probabilities=1)
        for prompt in PROMPTS
    ]
    expected = Engine(model, tokenizer).run(requests)
    engine = Engine(model, tokenizer, drafter=drafters(make_model)[name](), budget=100)
    steps, own = [0], engine._forward
    engine._forward = lambda: (steps.append(steps.pop() + 1), own())
    found = engine.run(requests)
    assert [[text.new for text in family] for family in found] == [[text.new for text in family] for family in expected]
    assert engine.guessed > 0 and all(group.pool.free == group.pool.blocks for group in engine.cache.groups)
    if name == "the model itself" and temperature == 0:
        assert engine.guessed_right > 0.95 * engine.guessed - 20  # ends of texts apart
        assert steps[0] < 30


def test_a_text_that_repeats_itself_is_guessed(make_model, tokenizer):
    """A model to which only the last token matters runs in circles."""
    model = make_model(scale=6, **WINDOWS)
    with torch.no_grad():
        model.position_embedding.weight.zero_()
        for block in model.blocks:
            block.attention.output.weight.zero_()
    engine = Engine(model, tokenizer, drafter=NGramLookup())
    engine.run([Request(tokenizer.encode("lazy"), 150, Sampling(temperature=0), ignore_end=True)])
    assert engine.guessed_right > 60


def test_texts_that_depend_on_what_came_before_are_not_guessed(make_model, tokenizer):
    model = make_model(scale=6, **WINDOWS)
    request = Request(tokenizer.encode("lazy"), 40, Sampling(0, repetition_penalty=1.3), ignore_end=True)
    engine = Engine(model, tokenizer, drafter=NGramLookup())
    ((text,),) = engine.run([request])
    assert text.new == Engine(model, tokenizer).run([request])[0][0].new and engine.guessed == 0


def test_a_drafter_by_name(make_model, tokenizer, tmp_path):
    families.save(make_model(), tokenizer, tmp_path / "small")
    assert isinstance(drafter_named("ngram", tokenizer), NGramLookup)
    assert isinstance(drafter_named(str(tmp_path / "small"), tokenizer), DraftModel)
    with pytest.raises(InputError, match="small: its tokenizer is another one"):
        drafter_named(str(tmp_path / "small"), tokenizer.with_special_tokens("<more>"))


@pytest.mark.parametrize("length", [14, 15, 16])
def test_samples_of_a_prompt_do_not_share_what_was_guessed(make_model, tokenizer, length):
    """The prompt's last token is read alone, and the guesses after it would reach into a new block."""
    model = make_model(scale=6, **WINDOWS)
    prompt = tokenizer.encode("the quick brown fox jumps over the lazy dog while " * 6)[:length]
    request = Request(prompt, 30, Sampling(1.0), samples=3, seed=1, ignore_end=True)
    expected = [text.new for text in Engine(model, tokenizer).run([request])[0]]

    class Knowing:
        def propose(self, texts, most):
            return [expected[0][len(text.new) :][:count] for text, count in zip(texts, most, strict=True)]

    engine = Engine(model, tokenizer, budget=length - 1, drafter=Knowing())
    assert [text.new for text in engine.run([request])[0]] == expected
    assert engine.guessed_right > 0


def test_the_blocks_of_guesses_are_given_back(make_model, tokenizer):
    """Also when nobody but the engine knew the text."""
    drafter = DraftModel(make_model(3, scale=6, context=160, layers=1))
    engine = Engine(make_model(scale=6, **WINDOWS), tokenizer, drafter=drafter)
    pool = drafter.cache.groups[0].pool
    free = []
    for _ in range(3):
        engine.submit(Request(tokenizer.encode(PROMPTS[3]), 20, Sampling(0), ignore_end=True))
        while engine.busy:
            engine.step()
        free.append(pool.free)
    assert free[0] == free[1] == free[2] > 0


def test_a_text_that_has_not_gone_on_is_not_guessed_again(make_model, tokenizer):
    """It was preempted, and what was known of its prompt leaves one token to read."""
    drafter = DraftModel(make_model(3, scale=6, context=160, layers=1), guesses=3)
    engine = Engine(make_model(scale=6, **WINDOWS), tokenizer)
    engine.submit(Request(tokenizer.encode(PROMPTS[3]), 20, Sampling(0), ignore_end=True))
    engine.step()
    (text,) = engine._running
    assert len(drafter.propose([text], [3])[0]) == 3
    assert drafter.propose([text], [3]) == [[]]


@pytest.mark.parametrize("sizes", [(320, 330), (330, 320)], ids=["larger", "smaller"])
def test_a_drafter_may_have_padding_of_another_size(make_model, tokenizer, sizes):
    """Ids behind the tokenizer's: of the drafter the model knows nothing, and a prompt may hold those of the model."""
    model, guessing = (make_model(scale=6, context=160, vocabulary=size) for size in sizes)
    with torch.no_grad():
        guessing.token_embedding.weight[-1] = 100 * guessing.token_embedding.weight[0]  # often the likeliest
    request = Request([5, 6, max(sizes[0] - 1, 7), 8], 30, Sampling(1.0), seed=1, ignore_end=True)
    engine = Engine(model, tokenizer, drafter=DraftModel(guessing))
    assert engine.run([request])[0][0].new == Engine(model, tokenizer).run([request])[0][0].new
