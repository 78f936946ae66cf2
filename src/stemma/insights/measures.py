"""What a pretrained model makes of held-out text, whatever its framework."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.data.shards import prepare
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.data.tokenizers import Tokenizer
from stemma.evaluation.blanks import way_of
from stemma.evaluation.left_to_right import likelihood_of
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.inference.filling_scores import score_fillings
from stemma.inference.generate import generate
from stemma.inference.infilling import continue_text
from stemma.inference.rolling_cache import RollingCache
from stemma.insights.passages import draw_choices, draw_passages, make_blanks, make_several_blanks
from stemma.insights.plan import Plan
from stemma.layers.experts import expert_shares


@torch.inference_mode()
def measure_model(model: Any, tokenizer: Tokenizer, plan: Plan, cache: Path) -> dict[str, Any]:
    """Return what a pretrained model makes of held-out passages and their blanks.

    Returns:
        bits_per_byte; blank_nll (nats per token of a piece, its end not counted), exact_match, rouge_l; choice: the
        share of right choices among four pieces; samples: the first blanks and what was written.
    """
    split = prepare(plan.source, tokenizer, cache, None).held_out
    passages = draw_passages(split, plan.passages, plan.passage_tokens)
    scores = likelihood_of(model, tokenizer).log_probabilities(passages)
    size = sum(len(tokenizer.decode(passage).encode()) for passage in passages)
    blanks = make_blanks(draw_passages(split, plan.blanks, plan.blank_tokens), plan.longest_blank)
    way = way_of(model, tokenizer)
    pieces = way.log_probabilities(blanks)
    inner = [piece[:-1] if way.ends else piece for piece in pieces]
    written, expected = way.write(blanks), [blank.piece for blank in blanks]
    texts = [(tokenizer.decode(w).strip(), tokenizer.decode(e).strip()) for w, e in zip(written, expected, strict=True)]
    choices = draw_choices(blanks, 3)
    values = iter(way.choice([option for options in choices for option in options]))
    right = [_is_first_best([next(values) for _ in options]) for options in choices]
    writes = _write_on(model, tokenizer, passages[0][:8])
    several = _several_blanks(model, tokenizer, split, plan) if plan.several_blanks and isinstance(model, GLM) else {}
    more = _of_mistral(model, split, passages, plan) if isinstance(model, Mistral) else {}
    return (
        several
        | more
        | {
            "bits_per_byte": -sum(float(score.sum()) for score in scores) / np.log(2) / size,
            "blank_nll": -sum(float(piece.sum()) for piece in inner) / sum(map(len, expected)),
            "exact_match": sum(w == e for w, e in texts) / len(texts),
            "rouge_l": sum(_rouge_l(w, e) for w, e in texts) / len(texts),
            "choice": sum(right) / len(right),
            "continuation": writes,
            "samples": [
                {
                    "before": tokenizer.decode(blank.before),
                    "piece": tokenizer.decode(blank.piece),
                    "after": tokenizer.decode(blank.after),
                    "written": tokenizer.decode(piece),
                }
                for blank, piece in zip(blanks[:6], written, strict=False)
            ],
        }
    )


def _is_first_best(scores: Sequence[float]) -> bool:
    """Return whether the first score is above all others; one that is not a number is above none."""
    first, *others = scores
    return first == first and not any(first <= other for other in others)


def _write_on(model: Any, tokenizer: Tokenizer, prompt: Sequence[int]) -> dict[str, str] | None:
    """Return a sample of what a model writes after a prompt; None where it does not write from left to right."""
    text = tokenizer.decode(prompt)
    options: dict[str, Any] = {"temperature": 0.8, "seed": 1}
    if isinstance(model, GPT | Mistral):
        return {"prompt": text, "text": generate(model, tokenizer, text, max_new_tokens=48, **options)[0].text}
    if isinstance(model, GLM):
        written = continue_text(model, tokenizer, text, max_piece_tokens=48, **options)[0].pieces[0]
        return {"prompt": text, "text": written}
    return None


def _of_mistral(model: Mistral, split: TokenizedSplit, passages: Sequence[Sequence[int]], plan: Plan) -> dict[str, Any]:
    """Return what is Mistral's own: the share of the keys that its windows leave, how evenly its experts are used, and
    what reading through a rolling cache changes."""
    config, length = model.config, plan.passage_tokens
    windows = [min(config.window(layer) or length, length) for layer in range(config.layers)]
    pairs = [sum(min(place + 1, window) for place in range(length)) for window in windows]
    found: dict[str, Any] = {
        "share_of_pairs": sum(pairs) / (config.layers * length * (length + 1) / 2),
        "share_of_cache": sum(windows) / (config.layers * length),
    }
    _, routings = model.hidden_and_routing(torch.tensor(passages))
    if routings:
        found["used_experts"] = used_experts(routings, config.experts_per_token)
    if plan.long_texts:
        found |= _through_a_rolling_cache(model, split, plan.long_texts)
    return found


def used_experts(routings: Sequence[torch.Tensor], chosen: int) -> float:
    """Return how many experts, used alike, would be as unevenly used: exp of the entropy of their shares of the tokens,
    in the mean over the layers.

    Args:
        routings: of each layer, float [tokens, experts], the logits of its router. chosen: experts a token meets.
    """
    shares = torch.stack([expert_shares(routing, chosen) / chosen for routing in routings])
    return float(torch.special.entr(shares).sum(-1).exp().mean())


def _through_a_rolling_cache(model: Mistral, split: TokenizedSplit, texts: int) -> dict[str, float]:
    """Return nats per token of long texts read at once and through a rolling cache, in pieces of a window and then
    token by token, the largest difference of a token, and the bytes of the cache for 2 and 20 windows."""
    window = max(model.config.window(layer) or 0 for layer in range(model.config.layers))
    length = 20 * window
    passages = draw_passages(split, texts, length)
    tokens = torch.tensor(passages)  # [texts, length]
    at_once = _log_probabilities(model, model.hidden(tokens[:, :-1]), tokens[:, 1:])
    cache = RollingCache.for_model(model, len(tokens), length)
    cache.begin(len(tokens))
    states = []
    for start in range(0, length // 2, window):
        piece = tokens[:, start : start + window]
        view = cache.pieces(range(len(tokens)), [piece.shape[1]] * len(tokens))
        states.append(model.hidden(piece.reshape(1, -1), cache=view).view(*piece.shape, -1))
    read = sum(state.shape[1] for state in states)
    states += [model.hidden(tokens[:, [place]], cache=cache) for place in range(read, length - 1)]
    rolling = _log_probabilities(model, torch.cat(states, 1)[:, : length - 1], tokens[:, 1:])
    return {
        "at_once_nll": -float(at_once.mean()),
        "rolling_nll": -float(rolling.mean()),
        "rolling_largest_difference": float((at_once - rolling).abs().max()),
        "cache_bytes_2": RollingCache.for_model(model, 1, 2 * window).nbytes,
        "cache_bytes_20": RollingCache.for_model(model, 1, length).nbytes,
    }


def _log_probabilities(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return model.logits(hidden).double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _several_blanks(model: GLM, tokenizer: Tokenizer, split: TokenizedSplit, plan: Plan) -> dict[str, float]:
    """Return nats per token, the ends of pieces included, of three blanks a passage: filled from left to right, and in
    the mean over all orders."""
    ids = GLMTokens.of(tokenizer)
    passages = draw_passages(split, plan.several_blanks, plan.blank_tokens, seed=1)
    contexts, fillings = [], []
    for passage, spans in zip(passages, make_several_blanks(passages, 3, plan.longest_blank), strict=True):
        context, end = [ids.beginning], 0
        for start, stop in spans:
            context += [*passage[end:start], ids.mask]
            end = stop
        contexts.append([*context, *passage[end:], ids.end])
        fillings.append([passage[start:stop] for start, stop in spans])
    tokens = sum(len(piece) + 1 for pieces in fillings for piece in pieces)
    totals = {
        name: -sum(map(sum, score_fillings(model, ids, contexts, fillings, orders=orders)))
        for name, orders in (("text_order_nll", 1), ("all_orders_nll", 6))
    }
    return {name: total / tokens for name, total in totals.items()}


def _rouge_l(written: str, expected: str) -> float:
    from stemma.evaluation.texts import rouge_l

    return rouge_l(written, expected)
