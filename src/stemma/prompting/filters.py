"""lm-evaluation-harness's filters and exact match, for tasks that say in its words what an answer is."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from stemma.prompting.task_files import Filter, Metric


def filtered(texts: Sequence[str], steps: Sequence[Filter]) -> list[str]:
    """Return what filters make of the texts that were written for one question."""
    found = list(texts)
    for step in steps:
        if step.function == "regex":
            found = [_matched(text, step) for text in found]
        elif step.function == "take_first":
            found = found[:1]
        elif step.function == "take_first_k":
            found = found[: step.k]
        elif step.function == "majority_vote":
            found = [Counter(found).most_common(1)[0][0]]
        elif step.function == "lowercase":
            found = [text.lower() for text in found]
        else:
            found = [text.strip() for text in found]
    return found


def _matched(text: str, step: Filter) -> str:
    matches = re.findall(step.regex_pattern, text)
    if not -len(matches) <= step.group_select < len(matches):
        return step.fallback
    match = matches[step.group_select]
    if isinstance(match, tuple):
        match = next((group for group in match if group), step.fallback)
    return str(match.strip())


def is_exact(text: str, gold: str, metric: Metric) -> bool:
    """Return whether a text is the right one, once both are what the metric makes of them."""
    both = [text, gold]
    for pattern in metric.regexes_to_ignore:
        both = [re.sub(pattern, "", one) for one in both]
    if metric.ignore_case:
        both = [one.lower() for one in both]
    if metric.ignore_punctuation:
        both = [one.translate(str.maketrans("", "", string.punctuation)) for one in both]
    return both[0] == both[1]
