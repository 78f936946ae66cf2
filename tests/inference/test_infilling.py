"""Filling blanks: the cache against one teacher-forced pass, sampling and search against exact probabilities."""

import math
from collections import Counter
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families.glm.model import GLM, GLMConfig
from stemma.families.glm.tokens import GLMTokens, prepare_tokenizer
from stemma.inference.filling_scores import score_fillings
from stemma.inference.infilling import Row, continue_text, fill_contexts, infill
from stemma.inference.sampling import Sampling
from stemma.layers.masks import Mask

SEP, CLS, END, MASK, SMASK, GMASK, SOP, EOP = range(8)
IDS = GLMTokens(SEP, CLS, END, MASK, SMASK, GMASK, SOP, EOP, MASK)
GREEDY = Sampling(temperature=0)
CONTEXTS = [
    [CLS, 8, MASK, 9, 10, MASK, 11, END],
    [CLS, MASK, 12, END],
    [CLS, 13, 9, 9, SMASK, 8, MASK, 10, 14, MASK, 11, 8, END],
    [CLS, 8, 9, 10, GMASK],
    [CLS, MASK, MASK, END],
]


def small_model(vocabulary: int = 15, seed: int = 0) -> GLM:
    torch.manual_seed(seed)
    model = GLM(GLMConfig(vocabulary=vocabulary, context=24, layers=2, hidden=24, heads=3, vocabulary_multiple=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm.weight" in name))
        model.final_norm.bias += 0.5 * model.token_embedding.weight[EOP]  # so that pieces end now and then
    return model.eval()


def teacher_forced(model: GLM, context: list[int], pieces: list[list[int]]) -> list[Tensor]:
    """Log-probabilities [tokens + 1, vocabulary] of each piece, in one pass over a sequence written out here."""
    places = [place for place, token in enumerate(context) if token in (MASK, SMASK, GMASK)]
    tokens, first, second = list(context), list(range(len(context))), [0] * len(context)
    for place, piece in zip(places, pieces, strict=True):
        for offset, token in enumerate([SOP, *piece]):
            tokens.append(token)
            first.append(place)
            second.append(offset + 1)
    mask = Mask(causal=True, prefix_lengths=torch.tensor([len(context)]))
    logits = model(torch.tensor([tokens]), torch.tensor([[first, second]]), mask)[0].log_softmax(-1)
    return list(logits[len(context) :].split([len(piece) + 1 for piece in pieces]))


def ends_of(row: Row) -> list[tuple[int, ...]]:
    return [(EOP, END) if row.context[place] == GMASK else (EOP,) for place in row.places]


@pytest.mark.parametrize("seed", range(6))
def test_greedy_filling_is_that_of_one_teacher_forced_pass(seed: int) -> None:
    """Several blanks, contexts of different lengths in a batch, unknown lengths: each token is the likeliest one."""
    model = small_model(seed=seed)
    reasons = []
    for row in fill_contexts(model, IDS, CONTEXTS, sampling=GREEDY, limit=6):
        found = teacher_forced(model, row.context, row.pieces)
        for piece, scores, expected, reason, ends in zip(
            row.pieces, row.log_probabilities, found, row.reasons, ends_of(row), strict=True
        ):
            best = expected.argmax(-1).tolist()
            assert piece == best[: len(piece)] and not set(ends) & set(piece)
            assert (best[len(piece)] in ends) == (reason == "end")
            assert reason == "end" or len(piece) == 6
            chosen = piece + ([best[len(piece)]] if reason == "end" else [])
            rows = torch.arange(len(chosen))
            torch.testing.assert_close(torch.tensor(scores), expected[rows, chosen], rtol=0, atol=1e-5)
            reasons.append(reason)
    assert len(reasons) == 2 + 1 + 3 + 1 + 2


def test_both_ways_of_ending_occur() -> None:
    rows = [
        row
        for seed in range(6)
        for row in fill_contexts(small_model(seed=seed), IDS, CONTEXTS, sampling=GREEDY, limit=6)
    ]
    assert {reason for row in rows for reason in row.reasons} == {"end", "length"}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.7, top_k=6)])
def test_a_filling_does_not_depend_on_the_batch(sampling: Sampling) -> None:
    model = small_model(seed=1)
    together = fill_contexts(model, IDS, CONTEXTS * 20, sampling=sampling, limit=5, seed=3)
    alone = [fill_contexts(model, IDS, [context], sampling=sampling, limit=5, seed=3)[0] for context in CONTEXTS]
    assert [row.pieces for row in together] == [row.pieces for row in alone] * 20
    expected = [score for row in alone * 20 for piece in row.log_probabilities for score in piece]
    found = [score for row in together for piece in row.log_probabilities for score in piece]
    assert found == pytest.approx(expected, abs=1e-5)


def test_samples_follow_the_exact_distribution() -> None:
    """Pieces of at most one token: as often as `score_fillings` says they are probable."""
    model, context, draws = small_model(vocabulary=10, seed=2), [CLS, 8, MASK, 9, END], 4000
    rows = fill_contexts(model, IDS, [context], sampling=Sampling(), limit=1, seed=1, samples=draws)
    found = Counter(tuple(row.pieces[0]) for row in rows)
    empty = math.exp(score_fillings(model, IDS, [context], [[[]]])[0][0])
    first = teacher_forced(model, context, [[]])[0][0].exp().tolist()
    assert empty == pytest.approx(first[EOP], rel=1e-5)
    for token in range(10):
        expected = first[token]
        count = found[() if token == EOP else (token,)]
        assert abs(count - draws * expected) <= 5 * math.sqrt(draws * expected * (1 - expected)) + 1


@pytest.mark.parametrize("context", [[CLS, 8, MASK, 8, END], [CLS, 8, 8, GMASK]])
def test_beam_search_finds_the_likeliest_piece(context: list[int]) -> None:
    """Against all pieces of at most two tokens, for [gMASK] with either end."""
    model, vocabulary = small_model(vocabulary=9, seed=4), 9
    ends = (EOP, END) if GMASK in context else (EOP,)
    candidates = {}
    for piece in [(), *product(range(vocabulary), repeat=1), *product(range(vocabulary), repeat=2)]:
        if set(ends) & set(piece):
            continue
        scores = teacher_forced(model, context, [list(piece)])[0]
        total = sum(scores[index, token].item() for index, token in enumerate(piece))
        if len(piece) < 2:
            total += scores[len(piece), list(ends)].logsumexp(0).item()
        candidates[piece] = total
    (row,) = fill_contexts(model, IDS, [context], sampling=GREEDY, limit=2, beams=81, length_penalty=0.0)
    best = max(candidates, key=lambda piece: candidates[piece])
    assert tuple(row.pieces[0]) == best
    assert sum(row.log_probabilities[0]) == pytest.approx(candidates[best], abs=1e-5)


def test_one_beam_wide_search_sees_the_earlier_pieces() -> None:
    """With two beams, each piece's score is that of the teacher-forced pass over all pieces."""
    model = small_model(seed=3)
    for context in CONTEXTS[:3]:
        (row,) = fill_contexts(model, IDS, [context], sampling=GREEDY, limit=4, beams=2)
        for piece, scores, expected in zip(
            row.pieces, row.log_probabilities, teacher_forced(model, context, row.pieces), strict=True
        ):
            chosen = [*piece, EOP][: len(scores)]
            torch.testing.assert_close(
                torch.tensor(scores), expected[torch.arange(len(chosen)), chosen], rtol=0, atol=1e-5
            )


def test_scores_of_given_pieces_and_their_mean_over_orders() -> None:
    model, context = small_model(seed=5), CONTEXTS[2]
    pieces = [[8, 9, 10], [], [11]]
    expected = [
        sum(row[index, token].item() for index, token in enumerate([*piece, EOP]))
        for piece, row in zip(pieces, teacher_forced(model, context, pieces), strict=True)
    ]
    others = [CONTEXTS[1], CONTEXTS[0]]
    found = score_fillings(model, IDS, [context, *others], [pieces, [[12, 13]], [[8], [9, 9, 9, 9]]], batch_size=2)
    assert found[0] == pytest.approx(expected, abs=1e-5)

    places = [4, 6, 9]
    sums = [0.0] * 3
    for order in permutations(range(3)):
        tokens, first, second = list(context), list(range(len(context))), [0] * len(context)
        for blank in order:
            tokens += [SOP, *pieces[blank]]
            first += [places[blank]] * (len(pieces[blank]) + 1)
            second += range(1, len(pieces[blank]) + 2)
        mask = Mask(causal=True, prefix_lengths=torch.tensor([len(context)]))
        scores = model(torch.tensor([tokens]), torch.tensor([[first, second]]), mask)[0].log_softmax(-1)
        at = len(context)
        for blank in order:
            for token in [*pieces[blank], EOP]:
                sums[blank] += scores[at, token].item() / 6
                at += 1
    assert score_fillings(model, IDS, [context], [pieces], orders=6)[0] == pytest.approx(sums, abs=1e-5)
    some = score_fillings(model, IDS, [context], [pieces], orders=3)[0]
    assert some != pytest.approx(expected, abs=1e-6) and some != pytest.approx(sums, abs=1e-6)
    with pytest.raises(InputError, match="context 1 has 3 blanks, got 2 pieces"):
        score_fillings(model, IDS, [context], [pieces[:2]])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "The cat sat on the mat. The dog sat on the rug. A cat and a dog ran over the mat.\n"
    return prepare_tokenizer(train_tokenizer([text * 30], "bpe", vocabulary=300))


@pytest.fixture(scope="module")
def text_model(tokenizer: Tokenizer) -> GLM:
    return small_model(tokenizer.vocabulary)


def test_texts_are_filled_in(text_model: GLM, tokenizer: Tokenizer) -> None:
    texts = ["The [MASK] sat on the [MASK].", "A dog[MASK]"]
    fillings = infill(text_model, tokenizer, texts, max_piece_tokens=4)
    assert [filling.context for filling in fillings] == [0, 1]
    for filling, text in zip(fillings, texts, strict=True):
        assert filling.pieces == [tokenizer.decode(piece) for piece in filling.tokens]
        assert all(len(piece) <= 4 for piece in filling.tokens)
        pieces = iter(filling.pieces)
        before, *after = text.split("[MASK]")
        assert filling.text == before.rstrip() + "".join(next(pieces) + part.rstrip() for part in after)
        scored = score_fillings(text_model, GLMTokens.of(tokenizer), [_context(tokenizer, text)], [filling.tokens])[0]
        if set(filling.finish_reasons) == {"end"}:
            assert filling.log_probability == pytest.approx(sum(scored), abs=1e-4)


def _context(tokenizer: Tokenizer, text: str) -> list[int]:
    from stemma.families.glm.tokens import encode_context

    return encode_context(tokenizer, GLMTokens.of(tokenizer), text)


def test_samples_and_seeds(text_model: GLM, tokenizer: Tokenizer) -> None:
    def pieces(**options: object) -> list[list[list[int]]]:
        found = infill(
            text_model, tokenizer, "The [MASK] sat.", temperature=1.0, samples=4, max_piece_tokens=8, **options
        )
        return [filling.tokens for filling in found]

    assert pieces(seed=1) == pieces(seed=1) != pieces(seed=2)
    assert len({str(piece) for piece in pieces(seed=1)}) > 1


def test_writing_on(text_model: GLM, tokenizer: Tokenizer) -> None:
    (filling,) = continue_text(text_model, tokenizer, "The cat sat", max_piece_tokens=10)
    assert filling.text == "The cat sat" + filling.pieces[0]
    assert 1 <= len(filling.tokens[0]) <= 10 or filling.finish_reasons == ["end"]


def test_what_cannot_be_filled(text_model: GLM, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no blank in"):
        infill(text_model, tokenizer, "The cat")
    with pytest.raises(InputError, match=r"text 1 has \d+ tokens, the model 25 positions"):
        infill(text_model, tokenizer, "[MASK] cat" * 30)
    with pytest.raises(InputError, match="max_piece_tokens is 0"):
        infill(text_model, tokenizer, "[MASK]", max_piece_tokens=0)
    with pytest.raises(InputError, match="beams is 2"):
        infill(text_model, tokenizer, "[MASK]", beams=2, temperature=1.0)
    with pytest.raises(InputError, match="not its tokenizer"):
        infill(small_model(20), tokenizer, "[MASK]")
    with pytest.raises(InputError, match="training mode"):
        infill(small_model(tokenizer.vocabulary).train(), tokenizer, "[MASK]")
