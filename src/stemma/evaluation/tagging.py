"""How good the tags of words are: of entities as a whole, and word by word."""

from collections.abc import Sequence

from stemma.data.conll import ENTITY_TAG
from stemma.errors import InputError


def score_tags(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return "accuracy" over words and, of entities' tags, "f1", "precision" and "recall" over all entities.

    An entity counts if its words and its type are right, micro-averaged by seqeval's default mode: tags against IOB2
    are read as conlleval reads them, so that an I- after O or another type begins an entity. What is undefined (no
    entity predicted or expected) is 0. Tags of which none is an entity's (parts of speech) get the accuracy alone;
    nothing but O is entities' tags without an entity.

    Args:
        predicted, expected: the sentences' tags, one a word, as `conll.read_conll` gives them.
    Raises:
        InputError: not as many predicted as expected sentences or, in one of them, tags, or none; a tag that is of no
            entity while others are; no seqeval.
    """
    if len(predicted) != len(expected) or not expected:
        raise InputError(f"{len(predicted)} predictions for {len(expected)} sentences; expected one for each")
    for number, (ours, theirs) in enumerate(zip(predicted, expected, strict=True), 1):
        if len(ours) != len(theirs):
            raise InputError(
                f"sentence {number}: {len(ours)} predictions for {len(theirs)} words; expected one for each"
            )
    given, right = [tag for tags in predicted for tag in tags], [tag for tags in expected for tag in tags]
    if not right:
        raise InputError(f"0 predictions for 0 words in {len(expected)} sentences; expected at least one word")
    scores = {"accuracy": sum(a == b for a, b in zip(given, right, strict=True)) / len(right)}
    kinds = set(given) | set(right)
    others = sorted(tag for tag in kinds if tag != "O" and not ENTITY_TAG.fullmatch(tag))
    if others and not any(ENTITY_TAG.fullmatch(tag) for tag in kinds):
        return scores
    if others:
        raise InputError(f"tag '{others[0][:40]}' among entities' tags; expected O, or B- or I- and a type")
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ImportError:
        raise InputError('metrics of entities need seqeval: pip install "stemma-lm[evaluation]"') from None
    pair = [list(tags) for tags in expected], [list(tags) for tags in predicted]
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        scores[name] = float(score(*pair, average="micro", zero_division=0))
    return scores
