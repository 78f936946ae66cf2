"""Single tokens as text."""

import pytest

from stemma.data.tokenizers import train_tokenizer
from stemma.serving.token_texts import TokenTexts


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_tokens_as_text(kind):
    text = "the lazy dog 🙂 jumps"
    other = train_tokenizer([f"{text} over the fox " * 20, "while naïve words sing" * 9], kind, 356)
    texts, tokens = TokenTexts(other), other.encode(text)
    assert b"".join(map(texts.bytes, tokens)).decode().strip() == other.decode(tokens, skip_special=False).strip()
    assert all(
        texts.text(token).encode() == texts.bytes(token) or texts.text(token).startswith("bytes:\\x")
        for token in tokens
    )
