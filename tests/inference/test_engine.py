"""The engine: every text is what it would be alone, whatever else is served, and nothing is left behind."""

import random
from collections import Counter

import pytest
import torch

from stemma.errors import InputError
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import prepare_tokenizer as prepare_glm
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.families.t5.model import T5, T5Config
from stemma.families.t5.tokens import prepare_tokenizer as prepare_t5
from stemma.inference.blocks import contents
from stemma.inference.engine import Engine
from stemma.inference.generate import generate
from stemma.inference.infilling import continue_text
from stemma.inference.paged_cache import PagedCache
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling
from stemma.inference.sampling_rows import Preferences

PROMPTS = ["the quick brown fox", "lazy", "jumps over the lazy dog while naïve öl", "the lazy dog jumps fox " * 4]
GREEDY = Sampling(temperature=0)
WINDOWS = {"layers": 4, "attention_pattern": ("dense", "banded"), "band": 20, "context": 128}


def tokens_of(texts):
    return [[text.new for text in family] for family in texts]


def whole(engine):
    """All blocks are free, and those that are known can be found."""
    return all(group.pool.free == group.pool.blocks for group in engine.cache.groups) and not engine.busy


def small_cache(engine, tokens):
    """Give an engine a cache for so many tokens."""
    config = engine.model.config
    engine.reader.cache = PagedCache(
        windows=[config.window(layer) for layer in range(config.layers)],
        heads=config.heads,
        head_dim=config.hidden // config.heads,
        memory=0,
        context=tokens,
        block=4,
    )
    return engine


@pytest.mark.parametrize("changes", [{"context": 128}, {"norm": "post", "context": 128}, WINDOWS], ids=["2", "1", "3"])
@pytest.mark.parametrize("budget", [1, 7, 512])
def test_texts_are_those_of_generate(make_model, tokenizer, changes, budget):
    model = make_model(**changes)
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=30, temperature=0)
    engine = Engine(model, tokenizer, budget=budget, memory=0)
    requests = [Request(tokenizer.encode(prompt), 30, GREEDY) for prompt in PROMPTS]
    assert tokens_of(engine.run(requests)) == [[text.tokens] for text in expected]
    assert whole(engine)


@pytest.mark.parametrize("changes", [{}, {"windows": (8, None)}, {"experts": 4}], ids=["window", "mixed", "experts"])
@pytest.mark.parametrize("budget", [5, 512])
def test_a_mistral_writes_what_generate_does(tokenizer, changes, budget):
    torch.manual_seed(0)
    shape = {"layers": 3, "hidden": 32, "heads": 4, "key_value_heads": 2, "feed_forward": 48, "windows": (8,)}
    model = Mistral(MistralConfig(tokenizer.vocabulary, context=256, **{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    options = {"temperature": 0.7, "samples": 2, "seed": 2}
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=40, **options)
    engine = Engine(model, tokenizer, budget=budget, memory=0)
    requests = [Request(tokenizer.encode(prompt), 40, Sampling(0.7), samples=2, seed=2) for prompt in PROMPTS]
    assert sum(tokens_of(engine.run(requests)), []) == [text.tokens for text in expected]
    assert whole(engine)


@pytest.mark.parametrize("changes", [{"context": 128}, WINDOWS], ids=["full", "windows"])
def test_draws_are_those_of_generate_in_any_company(make_model, tokenizer, changes):
    model = make_model(scale=4, **changes)
    prompts = [PROMPTS[0], PROMPTS[2]]
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2}
    expected = generate(model, tokenizer, prompts, max_new_tokens=20, samples=3, seed=5, **options)
    engine = Engine(model, tokenizer, budget=6)
    requests = [Request(tokenizer.encode(prompt), 20, Sampling(**options), samples=3, seed=5) for prompt in prompts]
    others = [Request(tokenizer.encode(prompt), 9, Sampling(min_p=0.1), seed=8) for prompt in PROMPTS]
    texts = engine.run([*others, *requests])[len(others) :]
    assert sum(tokens_of(texts), []) == [text.tokens for text in expected]
    assert [text.stream.text for family in texts for text in family] == [text.text for text in expected]
    assert whole(engine)


def test_log_probabilities(make_model, tokenizer):
    model = make_model(context=128)
    tokens = tokenizer.encode(PROMPTS[3])
    request = Request(tokens, 6, GREEDY, log_probabilities=3, prompt_log_probabilities=True)
    engine = Engine(model, tokenizer, budget=5)
    number, news = engine.submit(request), []
    while engine.busy:
        news += engine.step()
    assert all(update.request == number for update in news)
    (prompt,) = [update.prompt for update in news if update.prompt]
    assert [scored.token for scored in prompt] == tokens and prompt[0].log_probability is None
    written = [update.token for update in news]
    read = [*tokens, *(scored.token for scored in written)]
    expected = model(torch.tensor([read]))[0].log_softmax(-1)
    for place, scored in enumerate([*prompt, *written]):
        if place:
            row = expected[place - 1]
            assert scored.token == read[place]
            assert scored.log_probability == pytest.approx(row[read[place]].item(), abs=1e-4)
            values, ids = row.topk(3)
            assert [token for token, _ in scored.likeliest] == ids.tolist()
            assert [value for _, value in scored.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_prompt_alone_is_scored(make_model, tokenizer):
    engine = Engine(make_model(), tokenizer)
    engine.submit(Request(tokenizer.encode("lazy dog"), 0, prompt_log_probabilities=True))
    (update,) = engine.step()
    assert update.finish_reason == "length" and update.token is None and len(update.prompt) == 3 and whole(engine)


@pytest.mark.parametrize("texts", [1, 8])
def test_a_prompt_of_one_token_is_scored_with_fast_products(make_model, tokenizer, texts):
    """Nothing follows it in the prompt: products of no rows."""
    engine = Engine(make_model(), tokenizer, most_texts=texts)
    ((text,),) = engine.run([Request([5], 2, GREEDY, prompt_log_probabilities=True)])
    assert [token.log_probability for token in text.prompt_scores] == [None] and len(text.new) == 2


def test_prompts_that_begin_alike_are_read_once(make_model, tokenizer):
    model = make_model(**WINDOWS)
    begin = tokenizer.encode("the lazy dog jumps fox " * 6)
    prompts = [[*begin, *tokenizer.encode(end)] for end in ("the quick", "lazy dog", "sing and laugh")]
    engine = Engine(model, tokenizer)
    alone = [tokens_of(Engine(model, tokenizer, share_prefixes=False).run([Request(p, 25, GREEDY)])) for p in prompts]
    read = []
    for prompt, expected in zip(prompts, alone, strict=True):
        (text,) = engine.run([Request(prompt, 25, GREEDY)])
        assert tokens_of([text]) == expected
        read.append(len(prompt) - text[0].reused)
    assert len(begin) >= 30 and read[0] == len(prompts[0])
    assert all(count <= len(prompt) - len(begin) + 16 for count, prompt in zip(read[1:], prompts[1:], strict=True))
    assert whole(engine)


@pytest.mark.parametrize("changes", [{"context": 128}, WINDOWS], ids=["full", "windows"])
def test_too_little_memory_for_all_makes_some_wait(make_model, tokenizer, changes):
    """Blocks run out while texts are written: the youngest is read again later, and nobody notices."""
    model = make_model(**changes)
    requests = [Request(tokenizer.encode(prompt), 40, GREEDY, samples=2) for prompt in PROMPTS]
    expected = tokens_of(Engine(model, tokenizer).run(requests))
    engine = small_cache(Engine(model, tokenizer, budget=9), 110)
    preempted = []
    own = engine._preempt
    engine._preempt = lambda text: (preempted.append(text), own(text))
    assert tokens_of(engine.run(requests)) == expected
    assert preempted and whole(engine)


def test_a_prompt_that_waits_is_hashed_once(make_model, tokenizer, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "stemma.inference.paged_cache.contents",
        lambda tokens, block, *others: (hashed.append(len(tokens) // block * block), contents(tokens, block, *others))[
            1
        ],
    )
    engine = small_cache(Engine(make_model(context=128), tokenizer), 96)
    long = tokenizer.encode("the lazy dog jumps fox " * 20)[:80]
    requests = [Request(long[:40], 50, GREEDY, ignore_end=True), Request(long[::-1], 1, GREEDY)]
    waited, own = [], engine._forward
    engine._forward = lambda: (waited.append(engine.waiting), own())
    engine.run(requests)
    assert sum(waited) > 40
    assert sum(hashed) <= 2 * (40 + 50 + 80)  # when they are looked for, and when they are written


@pytest.mark.parametrize("share", [True, False])
def test_samples_are_texts_that_count(make_model, tokenizer, share):
    model = make_model(scale=4, context=128)
    requests = [
        Request(tokenizer.encode(prompt), 12, Sampling(0.9), samples=6, seed=3, prompt_log_probabilities=True)
        for prompt in PROMPTS[1:]
    ]
    expected = Engine(model, tokenizer).run(requests)
    engine = Engine(model, tokenizer, most_texts=4, share_prefixes=share)
    running, own = [], engine._forward
    engine._forward = lambda: (own(), running.append(engine.running))
    found = engine.run(requests)
    assert tokens_of(found) == tokens_of(expected) and max(running) == 4
    for text, other in zip(sum(found, []), sum(expected, []), strict=True):
        scores = [score.log_probability for score in text.prompt_scores[1:]]
        assert scores == pytest.approx([score.log_probability for score in other.prompt_scores[1:]], abs=1e-4)
    assert whole(engine)


def test_a_budget_below_the_number_of_texts_serves_them_in_turn(make_model, tokenizer):
    engine = Engine(make_model(context=128), tokenizer, budget=3)
    short = engine.submit(Request([5], 30, GREEDY, samples=8, ignore_end=True))
    long = engine.submit(Request(tokenizer.encode(PROMPTS[3]), 1, GREEDY))
    written, ended = Counter({sample: 0 for sample in range(8)}), []
    while engine.busy:
        for update in engine.step():
            ended += [update.request] * (update.finish_reason is not None)
            if update.request == short:
                written[update.sample] += 1
        assert not written[0] or max(written.values()) - min(written.values()) <= 1
    assert ended == [long] + [short] * 8 and set(written.values()) == {30}


def test_a_window_bounds_the_blocks_of_a_text(make_model, tokenizer):
    model = make_model(layers=2, attention_pattern=("banded",), band=8, context=512)
    engine = Engine(model, tokenizer, memory=0, budget=16)
    assert engine.cache.groups[0].pool.blocks <= 4
    held = []
    number = engine.submit(Request(tokenizer.encode("lazy " * 100), 200, GREEDY, ignore_end=True))
    while engine.busy:
        engine.step()
        held += [text.pages.counts[0] - text.pages.first[0] for text in engine._running]
    assert number == 0 and len(held) > 200 and max(held) <= 2
    assert whole(engine)


def test_cancelled_requests_free_their_blocks(make_model, tokenizer):
    engine = Engine(make_model(context=128), tokenizer, budget=8)
    numbers = [engine.submit(Request(tokenizer.encode(prompt), 30, GREEDY, samples=2)) for prompt in PROMPTS]
    for _ in range(6):
        engine.step()
    for number in numbers:
        engine.cancel(number)
    assert whole(engine) and engine.step() == []


def test_random_requests_and_cancels_leave_nothing(make_model, tokenizer):
    model, chance = make_model(**WINDOWS), random.Random(0)
    engine = small_cache(Engine(model, tokenizer, budget=13, most_texts=5), 128)
    reference = Engine(model, tokenizer, share_prefixes=False)
    expected, got, alive = {}, {}, set()
    for _ in range(60):
        for _ in range(chance.randrange(3)):
            tokens = tokenizer.encode(" ".join(chance.choices(PROMPTS[0].split() + ["lazy", "dog"], k=20)))
            tokens = tokens[: chance.randrange(1, 40)]
            length = chance.randrange(1, 12)
            number = engine.submit(Request(tokens, length, GREEDY, ignore_end=True))
            expected[number], got[number] = (tokens, length), []
            alive.add(number)
        if alive and chance.random() < 0.3:
            number = chance.choice(sorted(alive))
            engine.cancel(number)
            alive.discard(number)
        for update in engine.step():
            got[update.request].append(update.token.token)
            if update.finish_reason:
                alive.discard(update.request)
                tokens, length = expected.pop(update.request)
                alone = reference.run([Request(tokens, length, GREEDY, ignore_end=True)])
                assert got[update.request] == alone[0][0].new
    for number in alive:
        engine.cancel(number)
    assert whole(engine)


def test_stops_ends_and_preferences(make_model, tokenizer):
    model = make_model()
    prompt = tokenizer.encode(PROMPTS[0])
    engine = Engine(model, tokenizer)
    (text,) = engine.run([Request(prompt, 12, GREEDY)])[0]
    word = text.stream.text[4:7]
    (stopped,) = engine.run([Request(prompt, 12, GREEDY, stop=[word])])[0]
    assert stopped.finish_reason == "stop"
    assert stopped.stream.text == text.stream.text[: text.stream.text.index(word)]
    banned = text.new[0]
    (other,) = engine.run([Request(prompt, 12, GREEDY, preferences=Preferences(bias={banned: -1e9}))])[0]
    assert banned not in other.new
    (fresh,) = engine.run([Request(prompt, 30, GREEDY, preferences=Preferences(presence_penalty=1e6))])[0]
    assert len(set(fresh.new)) == len(fresh.new)
    end = tokenizer.separator
    (ended,) = engine.run([Request(prompt, 12, GREEDY, preferences=Preferences(bias={end: 1e9}))])[0]
    assert ended.finish_reason == "end" and ended.new == [end] and ended.stream.text == ""
    (full,) = engine.run([Request(prompt, 1000, GREEDY, ignore_end=True)])[0]
    assert full.finish_reason == "context" and len(full.tokens) == model.config.context + 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 3), "the prompt is empty"),
        (Request([1] * 65, 3), "the prompt has 65 tokens, the model's context is 64"),
        (Request([1, 320], 3), "a token outside 0 to 319"),
        (Request([1], 3, preferences=Preferences(bias={-1: 1.0})), "a bias is given to a token outside"),
        (Request([1], 3, samples=0), "at least one sample"),
        (Request([1], 3, seed=-1), "a seed of 0 or more"),
        (Request([1], 3, log_probabilities=321), "log_probabilities is 321, expected 0 to 320"),
    ],
)
def test_bad_requests_are_one_line(make_model, tokenizer, request_, message):
    engine = Engine(make_model(), tokenizer)
    with pytest.raises(InputError, match=message):
        engine.submit(request_)
    with pytest.raises(InputError, match=message):
        engine.run([Request([1], 3), request_])
    assert whole(engine)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_glm_writes_what_continue_text_does(tokenizer, temperature):
    torch.manual_seed(0)
    prepared = prepare_glm(tokenizer)
    config = GLMConfig(prepared.vocabulary, layers=2, hidden=32, heads=4, context=60)
    model = GLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(20 if name.startswith("token_embedding") else 10)
    expected = continue_text(model, prepared, PROMPTS, max_piece_tokens=20, temperature=temperature, seed=4, samples=2)
    engine = Engine(model, prepared, budget=16)
    sampling = Sampling(temperature)
    found = engine.run([Request(prepared.encode(p.rstrip()), 20, sampling, samples=2, seed=4) for p in PROMPTS])
    for text, filling in zip(sum(found, []), expected, strict=True):
        written = [token for token in text.new if token not in engine.reader.ends]
        assert written == filling.tokens[0] and len(written) > 0
        assert (text.finish_reason == "end") == (filling.finish_reasons[0] == "end")
    assert len({tuple(text.new) for text in sum(found, [])}) > 3
    assert whole(engine)
    with pytest.raises(InputError, match="a GLM does not read prompts from left to right"):
        engine.submit(Request([5], 3, prompt_log_probabilities=True))
    with pytest.raises(InputError, match="the prompt has 73 tokens with those round it, the model 61 positions"):
        engine.submit(Request([5] * 71, 3))


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_t5_writes_what_generate_does(tokenizer, temperature):
    torch.manual_seed(0)
    prepared = prepare_t5(tokenizer)
    model = T5(T5Config(prepared.vocabulary, layers=2, hidden=32, heads=4, head_dim=8, feed_forward=64)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_bias" in name:
                parameter.mul_(10)
            elif parameter.dim() > 1 and not name.startswith("output"):
                parameter.mul_(2)
    options = {"temperature": temperature, "seed": 4, "samples": 2}
    expected = generate(model, prepared, PROMPTS, max_new_tokens=40, **options)
    engine = Engine(model, prepared, budget=16)
    sampling = Sampling(temperature)
    found = engine.run([Request(prepared.encode(p), 40, sampling, samples=2, seed=4) for p in PROMPTS])
    assert [text.new for text in sum(found, [])] == [text.tokens for text in expected]
    assert len({tuple(text.new) for text in sum(found, [])}) > 3
    assert whole(engine) and engine.reader.sources.used == 0


def test_a_t5_that_ran_out_of_memory_goes_on_where_it_was(tokenizer):
    torch.manual_seed(0)
    prepared = prepare_t5(tokenizer)
    model = T5(T5Config(prepared.vocabulary, layers=2, hidden=32, heads=4, head_dim=8, feed_forward=64)).eval()
    requests = [Request(prepared.encode(prompt), 40, GREEDY, ignore_end=True) for prompt in PROMPTS]
    expected = tokens_of(Engine(model, prepared).run(requests))
    engine = Engine(model, prepared)
    engine.reader.cache = PagedCache(windows=[None] * 2, heads=4, head_dim=8, memory=0, context=60, block=4)
    lengths, encoded = [], []
    preempt, encode = engine._preempt, model.encode
    engine._preempt = lambda text: (lengths.append(len(text.tokens)), preempt(text))
    model.encode = lambda tokens: (encoded.append(1), encode(tokens))[1]
    assert tokens_of(engine.run(requests)) == expected
    assert max(lengths) > 9  # more than is read token by token
    assert len(encoded) <= len(requests) + len(lengths)  # no source is read in vain
    assert whole(engine) and engine.reader.sources.used == 0
