"""Every family's reading against a plain forward pass of transformers or of our own model, one question at a time."""

import pytest
import torch
import transformers
from tiny_models import FAMILIES, WORDS, directory_of, model_of, tokenizer_of

from stemma.data.tokenizers import pieces_in_text, train_tokenizer
from stemma.errors import InputError
from stemma.evaluation.blanks import Blank, way_of
from stemma.families.bert.pseudo_likelihood import pseudo_log_likelihood
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.tokens import GLMTokens, encode_context
from stemma.families.t5.tokens import encode_source
from stemma.inference.filling_scores import score_fillings
from stemma.layers.linear import Linear
from stemma.layers.masks import Mask
from stemma.probing.asking import likeliest_answers
from stemma.probing.common_vocabulary import STOP_WORDS, common_vocabulary
from stemma.probing.facts import Query
from stemma.probing.facts_answers import answer_scores
from stemma.probing.facts_readings import reading_of

TEXTS = (
    "the cat sings in [MASK] .",
    "the [MASK] dog",
    "Anna sees a red fox in [MASK]",
    "the [MASK] fox jumps . the end",
)
QUERIES = [Query.of([text]) for text in TEXTS]


@torch.no_grad()
def expected_of(family: str, text: str) -> torch.Tensor:
    """Return the log-probabilities of the whole vocabulary, by one unbatched pass."""
    model, tokenizer = model_of(family), tokenizer_of(family)
    before, after = text.split("[MASK]")
    left, right = tokenizer.encode(before.rstrip()), tokenizer.encode(after)
    if family in ("bert", "unilm"):
        first, last, mask = (tokenizer.id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
        logits = model(torch.tensor([[first, *left, mask, *right, last]]))[0, len(left) + 1]
    elif family in ("gpt", "lstm"):
        logits = model(torch.tensor([[tokenizer.separator, *left]]))[0, -1]
    elif family == "t5":
        source = encode_source(tokenizer, f"{before.rstrip()}<extra_id_0>{after}")
        blank = tokenizer.id("<extra_id_0>")
        logits = model(torch.tensor([source]), torch.tensor([[blank, 0]]))[0, 1]
    else:
        ids = GLMTokens.of(tokenizer)
        context = encode_context(tokenizer, ids, text)
        place = context.index(ids.mask)
        positions = torch.tensor([[[*range(len(context)), place], [0] * len(context) + [1]]])
        seen = Mask(causal=True, prefix_lengths=torch.tensor([len(context)]))
        logits = model(torch.tensor([[*context, ids.piece_start]]), positions, seen)[0, -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_together_are_as_one_at_a_time(family: str) -> None:
    model, tokenizer = model_of(family), tokenizer_of(family)
    tokens = [3, tokenizer.vocabulary - 1, 40, 7]
    done: list[int] = []
    found = reading_of(model, tokenizer).log_probabilities(QUERIES, tokens, done.append)
    expected = torch.stack([expected_of(family, text)[tokens] for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert sum(done) == len(TEXTS)


def test_only_the_states_of_blanks_go_through_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of("bert"), []
    forward = model.masked_head.forward
    monkeypatch.setattr(model.masked_head, "forward", lambda hidden: rows.append(len(hidden)) or forward(hidden))
    reading_of(model, tokenizer_of("bert")).log_probabilities(QUERIES, [3])
    assert sum(rows) == len(QUERIES)


def test_bert_reads_two_sentences_as_transformers_does(tmp_path) -> None:
    folder, tokenizer = directory_of("bert", tmp_path), tokenizer_of("bert")
    peer = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    first, last, mask = (tokenizer.id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    queries = [Query("the cat is", "red", earlier="a dog"), Query("the cat is", "red", later="a dog jumps")]
    found = reading_of(model_of("bert"), tokenizer).log_probabilities(queries, [11, 12])
    cat, red = tokenizer.encode("the cat is"), tokenizer.encode("red")
    texts = [(tokenizer.encode("a dog"), [*cat, mask, *red]), ([*cat, mask, *red], tokenizer.encode("a dog jumps"))]
    for row, (one, two) in zip(found, texts, strict=True):
        tokens = torch.tensor([[first, *one, last, *two, last]])
        segments = torch.tensor([[0] * (len(one) + 2) + [1] * (len(two) + 1)])
        with torch.no_grad():
            logits = peer(tokens, token_type_ids=segments).logits[0, tokens[0].tolist().index(mask)]
        torch.testing.assert_close(row, logits.log_softmax(-1)[[11, 12]], atol=1e-4, rtol=1e-4)


def test_gpt_sees_nothing_behind_the_blank() -> None:
    reading = reading_of(model_of("gpt"), tokenizer_of("gpt"))
    one, two = reading.log_probabilities([Query("the lazy", "dog"), Query("the lazy", "fox jumps")], [5, 6, 7])
    assert torch.equal(one, two) and not reading.both_sides


ANSWERS = ("fox", "Paris", "quick brown", "the lazy dog")


@pytest.mark.parametrize("family", ["gpt", "t5", "glm"])
def test_answers_of_several_tokens_are_scored_whole(family: str) -> None:
    model, tokenizer = model_of(family), tokenizer_of(family)
    pieces = pieces_in_text(tokenizer, ANSWERS)
    assert max(map(len, pieces)) > 1
    found = answer_scores(model, tokenizer, reading_of(model, tokenizer), QUERIES, pieces)
    for query, row in zip(QUERIES, found, strict=True):
        left, right = tokenizer.encode(query.left), tokenizer.encode(query.right)
        blanks = [Blank(tuple(left), piece, tuple(right)) for piece in pieces]
        if family == "glm":
            ids = GLMTokens.of(tokenizer)
            context = [ids.beginning, *left, ids.mask, *right, ids.end]
            scores = score_fillings(model, ids, [context] * len(pieces), [[piece] for piece in pieces])
            expected = [score for (score,) in scores]
        elif family == "gpt":  # the likelihood of the whole sentence, less that of its beginning, the same for all
            scores = []
            for blank in blanks:
                text = torch.tensor([[tokenizer.separator, *left, *blank.piece, *right]])
                chosen = model(text).detach()[0, :-1].log_softmax(-1).gather(1, text[0, 1:, None]).squeeze(1)
                scores.append(float(chosen[len(left) :].sum()))
            expected = scores
        else:
            expected = [float(score.sum()) for score in way_of(model, tokenizer).log_probabilities(blanks)]
        assert row.tolist() == pytest.approx(expected, abs=1e-3)


def test_bert_scores_answers_by_pseudo_log_likelihood() -> None:
    model, tokenizer = model_of("bert"), tokenizer_of("bert")
    pieces = pieces_in_text(tokenizer, ANSWERS)
    reading, tokens = reading_of(model, tokenizer), BERTTokens.of(tokenizer)
    found = answer_scores(model, tokenizer, reading, QUERIES, pieces)
    for query, row in zip(QUERIES, found, strict=True):
        left, right = tokenizer.encode(query.left), tokenizer.encode(query.right)
        for piece, score in zip(pieces, row.tolist(), strict=True):
            (whole,) = pseudo_log_likelihood(model, [[*left, *piece, *right]], tokens, within_words=True)
            assert score == pytest.approx(whole[len(left) : len(left) + len(piece)].sum(), abs=1e-3)
    means = answer_scores(model, tokenizer, reading, QUERIES, pieces, per_token=True)
    torch.testing.assert_close(means, found / torch.tensor([len(piece) for piece in pieces]))


def test_the_common_vocabulary_is_what_all_write_in_one_token() -> None:
    tokenizers = [tokenizer_of("bert"), train_tokenizer([WORDS * 20], "bpe", 400)]
    words = common_vocabulary(tokenizers)
    assert {"fox", "dog", "cat"} <= set(words) and not STOP_WORDS & set(words)
    for tokenizer in tokenizers:
        for word in words:
            ids = tokenizer.encode(f"the {word}")
            assert len(ids) == len(tokenizer.encode("the")) + 1 and tokenizer.decode(ids[-1:]).strip() == word
    assert common_vocabulary(tokenizers, ["unheard", "the", "dog", "dog"]) == ["the", "dog"]
    with pytest.raises(InputError, match="no word is one token in all of these models"):
        common_vocabulary(tokenizers, ["unheard"])


def test_likeliest_answers_of_a_gpt_are_the_next_tokens() -> None:
    model, tokenizer = model_of("gpt"), tokenizer_of("gpt")
    expected = expected_of("gpt", TEXTS[0])
    expected[list(tokenizer.special)] = -torch.inf
    best = expected[: tokenizer.vocabulary].topk(3)
    found = likeliest_answers(model, tokenizer, TEXTS[0], top=3)
    assert [piece for piece, _ in found] == [tokenizer.decode([index]).strip(" ") for index in best.indices]
    assert [score for _, score in found] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_what_cannot_be_asked() -> None:
    tokenizer = tokenizer_of("bert")
    with pytest.raises(InputError, match="a Linear answers no questions"):
        stranger = Linear(2, 2).eval()
        stranger.config = model_of("bert").config
        reading_of(stranger, tokenizer)
    with pytest.raises(InputError, match="in training mode"):
        reading_of(model_of("bert").train(), tokenizer)
    with pytest.raises(InputError, match="not its tokenizer"):
        reading_of(model_of("t5"), tokenizer_of("gpt"))
    with pytest.raises(InputError, match="no <extra_id_0>"):
        reading_of(model_of("t5"), train_tokenizer(["the lazy dog " * 20], "wordpiece", 30))
    with pytest.raises(InputError, match="question 1 has 8 tokens, the model reads 1 to 6"):
        reading_of(model_of("bert", context=6), tokenizer).log_probabilities(
            [Query.of(["the cat sings in [MASK] ."])], [3]
        )
