"""How near written texts come to what was expected: translations and summaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stemma.errors import InputError

_SUMMARIES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a corpus from 0 to 100 by name, and by the same names sacrebleu's signatures to report them with."""

    values: dict[str, float]
    signatures: dict[str, str]


def score_translations(predicted: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Return "bleu" (Papineni et al. 2002) and "chrf" (chrF2, Popović 2015) of the corpus by sacrebleu's defaults.

    They are of plain text, not tokenised: BLEU's words are those of the tokenizer 13a, which does not part Chinese or
    Japanese; chrF needs no words.

    Args:
        references: one for each prediction.
    Raises:
        InputError: not as many predictions as references, or none; no sacrebleu.
    """
    _check_counts(predicted, references)
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError('metrics of translations need sacrebleu: pip install "stemma-lm[evaluation]"') from None
    values, signatures = {}, {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        values[name] = float(metric.corpus_score(list(predicted), [list(references)]).score)
        signatures[name] = str(metric.get_signature())  # complete only after a score
    return TranslationScores(values, signatures)


def score_summaries(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F1 "rouge1", "rouge2", "rougeL" and "rougeLsum" (Lin 2004) from 0 to 1 by Google's rouge-score.

    Words are runs of a-z and 0-9 in lower case, by their stems (Porter's): texts in other alphabets have none, and
    get 0. For "rougeLsum" a line is a sentence.

    Args:
        references: one for each prediction.
    Raises:
        InputError: not as many predictions as references, or none; no rouge-score.
    """
    _check_counts(predicted, references)
    scorer = _scorer(_SUMMARIES)
    scores = [scorer.score(theirs, ours) for ours, theirs in zip(predicted, references, strict=True)]
    return {name: sum(float(score[name].fmeasure) for score in scores) / len(scores) for name in _SUMMARIES}


def rouge_l(predicted: str, reference: str) -> float:
    """Return the F1 ROUGE-L of one text, by the words of `score_summaries`.

    Raises:
        InputError: no rouge-score.
    """
    return float(_scorer(("rougeL",)).score(reference, predicted)["rougeL"].fmeasure)


@cache
def _scorer(kinds: tuple[str, ...]) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError('ROUGE needs rouge-score: pip install "stemma-lm[evaluation]"') from None
    return RougeScorer(kinds, use_stemmer=True)


def _check_counts(predicted: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(predicted) != len(references):
        raise InputError(f"{len(predicted)} predictions for {len(references)} references; expected one for each")
