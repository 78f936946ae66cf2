"""A corpus in which every token says where it stands, so that a passage can be checked against its text."""

from collections.abc import Sequence

from stemma.families.bert.tokens import BERTTokens

CLS, SEP, MASK = 0, 1, 2
FIRST = 3  # id of the first token of the text


def unique_tokens(sentences: Sequence[Sequence[int]]) -> tuple[list[list[int]], BERTTokens]:
    """Return documents of sentences of the given lengths, made of the ids FIRST, FIRST + 1, ... in order, and the
    vocabulary, in which the last token of each sentence is a full stop."""
    texts, documents = ["", "", ""], []
    for lengths in sentences:
        document = []
        for length in lengths:
            document += range(len(texts), len(texts) + length)
            texts += [" word"] * (length - 1) + [" ."]
        documents.append(document)
    return documents, BERTTokens(CLS, SEP, MASK, SEP, texts)
