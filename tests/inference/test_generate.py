"""generate and stream: transformers' tokens, the model's own distribution, and everything a text may end by."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from stemma.errors import InputError
from stemma.families import FAMILIES
from stemma.inference import job
from stemma.inference.generate import generate, stream

PROMPTS = ["the quick brown fox", "lazy", "jumps over the lazy dog while naïve öl"]


def without_cache(model, tokens, count):
    """Greedy search the plain way: all of the text through the model for each token."""
    tokens = list(tokens)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens[-count:]


@pytest.mark.parametrize("new_tokens", [5, 24])  # 24: with prepacked weights
@pytest.mark.parametrize(
    "changes",
    [{"norm": "post"}, {}, {"layers": 4, "attention_pattern": ("dense", "banded"), "band": 4}, {"tie_output": False}],
    ids=["gpt1", "gpt2", "gpt3", "untied"],
)
def test_greedy_tokens_are_those_without_a_cache(make_model, tokenizer, changes, new_tokens):
    model = make_model(**changes)
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=new_tokens, temperature=0)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        expected = without_cache(model, tokenizer.encode(prompt), new_tokens)
        if tokenizer.separator in expected:
            expected = expected[: expected.index(tokenizer.separator) + 1]
        assert text.tokens == expected
    assert len({tuple(text.tokens) for text in texts}) == 3


@pytest.mark.parametrize("penalty", [1.0, 1.6])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_greedy_tokens_are_those_of_transformers(make_model, twin_of, tokenizer, norm, penalty):
    model = make_model(1, norm=norm)
    twin = twin_of(model)
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=20, temperature=0, repetition_penalty=penalty)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt)])
        expected = twin.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=tokenizer.separator,
            pad_token_id=0,
        )
        assert text.tokens == expected[0, tokens.shape[1] :].tolist()


def test_first_tokens_of_many_samples_follow_the_models_distribution(make_model, tokenizer):
    model = make_model(2)
    texts = generate(model, tokenizer, "the lazy", max_new_tokens=1, samples=3000, seed=1, temperature=0.8, top_k=8)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("the lazy")]))[0, -1].double() / 0.8
    largest = logits.topk(8)
    counts = np.bincount([text.tokens[0] for text in texts], minlength=320)
    expected = 3000 * largest.values.softmax(0).numpy()
    assert counts.sum() == counts[largest.indices.numpy()].sum() == 3000
    assert chisquare(counts[largest.indices.numpy()], expected).pvalue > 0.01


def test_texts_do_not_depend_on_what_else_is_in_the_batch(make_model, tokenizer, monkeypatch):
    model, options = make_model(scale=10.0), {"max_new_tokens": 20, "seed": 11, "top_p": 0.95}
    together = generate(model, tokenizer, PROMPTS, samples=3, **options)
    alone = [text for prompt in PROMPTS for text in generate(model, tokenizer, prompt, samples=3, **options)]
    assert [text.tokens for text in together] == [text.tokens for text in alone]
    assert [(text.prompt, text.sample) for text in together] == [(p, s) for p in range(3) for s in range(3)]
    assert len({tuple(text.tokens) for text in together}) == 9
    monkeypatch.setattr(job, "_MOST_ROWS", 2)  # samples of one prompt in different batches
    batches = generate(model, tokenizer, PROMPTS, samples=3, **options)
    assert [text.tokens for text in batches] == [text.tokens for text in alone]


def test_the_seed_in_the_result_gives_the_text_again(make_model, tokenizer):
    model = make_model(scale=10.0)
    first, second = (generate(model, tokenizer, "dog", max_new_tokens=12)[0] for _ in range(2))
    assert first.seed != second.seed and first.tokens != second.tokens
    assert generate(model, tokenizer, "dog", max_new_tokens=12, seed=first.seed)[0].tokens == first.tokens


def test_log_probabilities_are_the_models_own(make_model, tokenizer):
    """Whatever the temperature, filters and penalty: log softmax of the plain logits."""
    model = make_model()
    texts = generate(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=10,
        temperature=0.5,
        top_k=5,
        repetition_penalty=1.3,
        seed=0,
        log_probabilities=True,
    )
    for prompt, text in zip(PROMPTS, texts, strict=True):
        before = tokenizer.encode(prompt)
        with torch.no_grad():
            log_probabilities = model(torch.tensor([before + text.tokens])).log_softmax(-1)[0, len(before) - 1 : -1]
        expected = log_probabilities.gather(1, torch.tensor(text.tokens).unsqueeze(1)).squeeze(1)
        assert text.log_probabilities == pytest.approx(expected.tolist(), abs=1e-4)


def favour(model, sequence):
    """Make a model continue every token by the next of `sequence`, in a circle, whatever the context."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.weight.fill_(1.0)
        width = model.config.hidden
        directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
        directions -= directions.mean(1, keepdim=True)
        for i, token in enumerate(sequence):
            model.token_embedding.weight[token] = directions[i]
            model.output.weight[sequence[(i + 1) % len(sequence)]] = directions[i]
    return model


def test_a_stop_string_ends_a_text_in_the_middle_of_a_token(make_model, tokenizer):
    sequence = tokenizer.encode("the lazy dog jumps fox")
    assert [tokenizer.decode([token]) for token in sequence] == ["the", " lazy", " dog", " jumps", " fox"]
    model = favour(make_model(tie_output=False), sequence)
    pieces = []
    text = generate(
        model,
        tokenizer,
        "the",
        max_new_tokens=30,
        temperature=0,
        stop=["y do", "never"],
        on_text=lambda prompt, sample, piece: pieces.append((prompt, sample, piece)),
    )[0]
    assert (text.text, text.finish_reason) == (" laz", "stop")
    assert text.tokens == sequence[1:3]  # " lazy" and " dog": all that was generated
    assert "".join(piece for _, _, piece in pieces) == text.text
    free = generate(model, tokenizer, "the", max_new_tokens=4, temperature=0)[0]
    assert (free.text, free.finish_reason) == (" lazy dog jumps fox", "length")


def test_the_end_of_text_ends_a_text_and_its_row_leaves_the_batch(make_model, tokenizer, monkeypatch):
    sequence = [*tokenizer.encode("the lazy dog jumps fox"), tokenizer.separator]
    model = favour(make_model(tie_output=False), sequence)
    rows = []
    step = job.Decoder.step
    monkeypatch.setattr(job.Decoder, "step", lambda self, tokens: rows.append(len(tokens)) or step(self, tokens))
    prompts = ["the lazy", "the", "the lazy dog"]
    texts = generate(model, tokenizer, prompts, max_new_tokens=9, temperature=0)
    assert [text.text for text in texts] == [" dog jumps fox", " lazy dog jumps fox", " jumps fox"]
    assert [text.finish_reason for text in texts] == ["end"] * 3
    assert all(text.tokens[-1] == tokenizer.separator for text in texts)
    assert [len(text.tokens) for text in texts] == [4, 5, 3]
    assert rows == [3, 3, 2, 1]  # a row that is done is not computed further


def test_generation_stops_where_the_context_ends(make_model, tokenizer):
    model = make_model()
    prompt = "the lazy dog " * 10
    length = len(tokenizer.encode(prompt))
    text = generate(model, tokenizer, prompt, max_new_tokens=100, temperature=0, stop="\0")[0]
    expected = without_cache(model, tokenizer.encode(prompt), 64 - length + 1)
    assert tokenizer.separator not in expected
    assert (text.tokens, text.finish_reason) == (expected, "context")
    short, long = generate(model, tokenizer, ["dog", prompt], max_new_tokens=40, temperature=0)
    assert long.finish_reason == "context" and (len(short.tokens), short.finish_reason) == (40, "length")


def test_a_prompt_longer_than_the_context(make_model, tokenizer):
    model, prompt = make_model(), "lazy fox " * 50
    length = len(tokenizer.encode(prompt))
    with pytest.raises(InputError, match=f"prompt 2 has {length} tokens, the model's context 64"):
        generate(model, tokenizer, ["short", prompt])
    cut = generate(model, tokenizer, prompt, max_new_tokens=10, temperature=0, truncate=True)[0]
    assert cut.tokens == without_cache(model, tokenizer.encode(prompt)[-54:], 10)
    cut = generate(model, tokenizer, prompt, max_new_tokens=50, temperature=0, truncate=True)[0]
    assert cut.tokens == without_cache(model, tokenizer.encode(prompt)[-32:], 33) and cut.finish_reason == "context"


def test_an_empty_prompt_begins_a_new_text(make_model, tokenizer):
    model = make_model(1)
    text = generate(model, tokenizer, "", max_new_tokens=8, temperature=0)[0]
    assert tokenizer.separator not in text.tokens
    assert text.tokens == without_cache(model, [tokenizer.separator], 8)


def test_logits_are_computed_for_last_positions_only(make_model, tokenizer, monkeypatch):
    model, seen = make_model(), []
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: seen.append(tuple(hidden.shape)) or plain(hidden))
    generate(model, tokenizer, PROMPTS, max_new_tokens=3, temperature=0)
    assert seen == [(3, 32)] * 3


def test_stream_yields_the_text_of_generate(make_model, tokenizer):
    model, options = make_model(scale=10.0), {"max_new_tokens": 40, "seed": 3, "temperature": 0.9, "stop": "\0"}
    pieces = list(stream(model, tokenizer, "the quick", **options))
    assert len(pieces) > 10 and "" not in pieces
    assert "".join(pieces) == generate(model, tokenizer, "the quick", **options)[0].text
    assert "logits" not in vars(model)  # its own products are back


def test_beams_return_the_best_texts(make_model, twin_of, tokenizer):
    model = make_model(5)
    texts = generate(model, tokenizer, PROMPTS[0], beams=4, samples=2, max_new_tokens=10, log_probabilities=True)
    tokens = torch.tensor([tokenizer.encode(PROMPTS[0])])
    expected = twin_of(model).generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=10,
        num_beams=4,
        num_return_sequences=2,
        do_sample=False,
        eos_token_id=tokenizer.separator,
        pad_token_id=0,
    )
    for text, row in zip(texts, expected, strict=True):
        assert text.tokens == row[tokens.shape[1] :].tolist()
        assert text.text == tokenizer.decode(text.tokens)
        assert sum(text.log_probabilities) / len(text.tokens) == pytest.approx(text.score, abs=1e-5)
    assert texts[0].score > texts[1].score


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more"),
        ({"samples": 0}, "samples is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"beams": 0}, "beams is 0, expected 1 or more"),
        ({"beams": 2, "samples": 3}, r"beams is 2, expected 1 or more, and at least samples \(3\)"),
        ({"beams": 2, "temperature": 0.7}, "beams search the likeliest text"),
        ({"beams": 2, "stop": "x"}, "beams cannot be combined with stop strings"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_bad_options_are_input_errors(make_model, tokenizer, options, message):
    with pytest.raises(InputError, match=message):
        generate(make_model(), tokenizer, "dog", **options)


def test_a_model_that_cannot_be_used_is_an_input_error(make_model, tokenizer):
    with pytest.raises(InputError, match=r"training mode.*model.eval\(\)"):
        generate(make_model().train(), tokenizer, "dog")
    with pytest.raises(InputError, match="the tokenizer has 320 ids, the model only 100"):
        generate(make_model(vocabulary=100), tokenizer, "dog")


@pytest.mark.parametrize("name", ["bert", "glm"])
def test_a_model_that_does_not_go_on_is_an_input_error(name, tokenizer):
    family = FAMILIES[name]
    config = family.config(vocabulary=tokenizer.vocabulary, context=16, layers=1, hidden=8, heads=2)
    with pytest.raises(
        InputError, match=f"a {name.upper()} does not write from a prompt: expected a GPT, Mistral, LSTM"
    ):
        generate(family.model(config).eval(), tokenizer, "dog")
