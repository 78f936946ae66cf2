"""Learning-rate schedules: pure functions from the number of updates already made to a factor of the peak rate.

The first update has `step` 0, so warm-up starts from 0 as in transformers and in GPT-1's code (of the Transformer's
own schedule from its first step). There is no scheduler
object and hence nothing to save: a resumed run asks for the factor of its step.
"""

import math


def constant(step: int, *, warmup: int = 0) -> float:
    """Linear warm-up over `warmup` updates, then 1."""
    return _warm(step, warmup)


def linear(step: int, *, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """Linear warm-up, then a straight line from 1 down to `final` at step `total`; `final` from there on."""
    if step < warmup:
        return _warm(step, warmup)
    return final + (1 - final) * (1 - _progress(step, warmup, total))


def cosine(step: int, *, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from 1 down to `final` at step `total`; `final` from there on.

    GPT-3 (Brown et al. 2020, appendix B) reaches 10 % at 260 of 300 billion tokens and stays there: `total` is the
    step where the decay ends, which may lie before the last step of the run.
    """
    if step < warmup:
        return _warm(step, warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))


def inverse_square_root(step: int, *, warmup: int) -> float:
    """min(n / warmup, sqrt(warmup / n)) of update n, counted from 1 here (Vaswani et al. 2017, section 5.3).

    Scaled so that its peak, there hidden^-0.5 * warmup^-0.5, is 1.
    """
    update, warmup = step + 1, max(warmup, 1)
    return min(update / warmup, math.sqrt(warmup / update))


def t5(step: int, *, warmup: int) -> float:
    """T5's, 1 / sqrt(max(step, warmup)), scaled so that it begins at 1: constant at first, not growing.

    Raffel et al. 2020, section 3.1.2, with a `warmup` of 10,000 and hence a peak of 0.01.
    """
    warmup = max(warmup, 1)
    return math.sqrt(warmup / max(step, warmup))


def gpt1(step: int, *, total: int, warmup: int) -> float:
    """GPT-1's fine-tuning schedule as in its code: with x = step / total, (x / w while x <= w, else 1) * (1 - x).

    The decay multiplies the warm-up too. The paper (Radford et al. 2018, section 4.1) says linear decay with warm-up
    over 0.2 % of training.
    """
    progress = min(step / total, 1.0)
    fraction = warmup / total
    return (progress / fraction if fraction > 0 and progress <= fraction else 1.0) * (1 - progress)


def factor(name: str, step: int, *, total: int, warmup: int, final: float) -> float:
    """Return the factor of the schedule called `name` (see NAMES) for the update after `step` updates."""
    if name == "constant":
        return constant(step, warmup=warmup)
    if name == "linear":
        return linear(step, total=total, warmup=warmup, final=final)
    if name == "cosine":
        return cosine(step, total=total, warmup=warmup, final=final)
    if name == "inverse_square_root":
        return inverse_square_root(step, warmup=warmup)
    if name == "t5":
        return t5(step, warmup=warmup)
    return gpt1(step, total=total, warmup=warmup)


NAMES = ("constant", "linear", "cosine", "inverse_square_root", "t5", "gpt1")
DEPEND_ON_TOTAL = ("linear", "cosine", "gpt1")


def _warm(step: int, warmup: int) -> float:
    return step / warmup if step < warmup else 1.0


def _progress(step: int, warmup: int, total: int) -> float:
    return min((step - warmup) / max(total - warmup, 1), 1.0)
