"""Learning a vocabulary from text: byte-level BPE, WordPiece, Unigram and whole words, each the same on every run.

The `tokenizers` library does the counting, in parallel and in a stream. Of its three trainers only BPE's result is
reproducible, so WordPiece is learned through that one and Unigram's result is brought into a fixed form.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stemma.data.sentencepiece_models import SPACE
from stemma.data.tokenizer_files import ELMO_NAMES, wordpiece_pipeline
from stemma.errors import InputError, closest

MIN_FREQUENCY = 2  # of a pair to be merged: one seen once is no pattern
LINE_END = "\n"  # a token of its own among words
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

SPECIAL = {
    "bpe": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},  # T5's, with its ids
    "word": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "elmo": ELMO_NAMES,
}

Parts = tuple[Tokenizer, dict[str, str]]


def learn(
    texts: Iterable[str],
    kind: str,
    vocabulary: int,
    special: tuple[str, ...],
    lowercase: bool,
    byte_fallback: bool,
    progress: Callable[[int], None] | None,
) -> Parts:
    """See `stemma.data.tokenizers.train_tokenizer`; returns the pipeline and {role: special token}."""
    if kind not in SPECIAL:
        raise InputError(f"kind: '{kind}'{closest(kind, SPECIAL)}; expected {', '.join(SPECIAL)}")
    names = SPECIAL[kind]
    specials = list(dict.fromkeys([*names.values(), *special]))
    stream = _counted(texts, progress)
    if kind == "bpe":
        backend = _learn_bpe(stream, vocabulary, specials, lowercase)
    elif kind == "wordpiece":
        backend = _learn_wordpiece(stream, vocabulary, specials, lowercase)
    elif kind == "elmo":
        backend = _learn_elmo(stream, vocabulary, specials, lowercase)
    elif kind == "unigram":
        backend = _learn_unigram(stream, vocabulary, specials, lowercase, byte_fallback)
    else:
        backend = _learn_words(stream, vocabulary, specials, lowercase)
    backend.add_special_tokens(specials)
    learned = backend.get_vocab_size()
    if learned < vocabulary and kind != "elmo":  # of words that is the most there may be
        warnings.warn(
            f"the text repeats too little for {vocabulary} tokens: the vocabulary has {learned}", stacklevel=3
        )
    return backend, names


def _counted(texts: Iterable[str], progress: Callable[[int], None] | None) -> Iterator[str]:
    """Report the bytes of each text; InputError at the end if there was none at all."""
    empty = True
    for text in texts:
        empty = empty and not text
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(
                f"a text has half of a surrogate pair at character {error.start}; expected valid Unicode"
            ) from None
        if progress is not None:
            progress(size)
        yield text
    if empty:
        raise InputError("no text to learn a tokenizer from; expected at least one character")


def _check_size(vocabulary: int, alphabet: int, what: str, specials: list[str]) -> None:
    needed = alphabet + len(specials)
    if vocabulary < needed:
        raise InputError(
            f"vocabulary: {vocabulary} tokens do not hold the alphabet; expected at least {needed} "
            f"({alphabet} {what}; special tokens: {len(specials)})"
        )


def _learn_bpe(stream: Iterator[str], vocabulary: int, specials: list[str], lowercase: bool) -> Tokenizer:
    """GPT-2's (Radford et al. 2019, section 2.2): pairs of bytes merged inside words, punctuation or numbers."""
    _check_size(vocabulary, 256, "bytes", specials)
    backend = Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=MIN_FREQUENCY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(stream, trainer)
    return backend


def _learn_wordpiece(stream: Iterator[str], vocabulary: int, specials: list[str], lowercase: bool) -> Tokenizer:
    """BERT's vocabulary, by byte pair merges as in `tokenizers`' own WordPiece trainer (Google's is not published).

    A mark in front of each word tells the merges that begin one from those inside, which are written "##ing".
    """
    mark = "\x01"  # BERT's normaliser removes control characters, so that no text holds it
    names = SPECIAL["wordpiece"]
    backend = Tokenizer(models.BPE())
    pipeline = wordpiece_pipeline({token: index for index, token in enumerate(specials)}, names, lowercase)
    backend.normalizer = pipeline.normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pipeline.pre_tokenizer, pre_tokenizers.Metaspace(replacement=mark, prepend_scheme="always", split=False)]
    )
    # Twice the size, because some merges only join the mark to a character, which the alphabet has already.
    trainer = trainers.BpeTrainer(vocab_size=2 * vocabulary, min_frequency=MIN_FREQUENCY, show_progress=False)
    backend.train_from_iterator(stream, trainer)

    learned = sorted(backend.get_vocab().items(), key=lambda item: item[1])  # the alphabet, then merges in order
    alphabet = [token for token, _ in learned if len(token) == 1 and token != mark]
    inside = [f"##{character}" for character in alphabet if not _stands_alone(character, pipeline)]
    _check_size(vocabulary, len(alphabet) + len(inside), "characters at the start of words and inside", specials)
    merged = [token[1:] if token.startswith(mark) else f"##{token}" for token, _ in learned if len(token) > 1]
    tokens = list(dict.fromkeys([*specials, *alphabet, *inside, *merged]))[:vocabulary]
    return wordpiece_pipeline({token: index for index, token in enumerate(tokens)}, names, lowercase)


def _stands_alone(character: str, pipeline: Tokenizer) -> bool:
    """Whether the pipeline makes a word of it wherever it is (punctuation, Chinese), so that it is inside of none."""
    text = pipeline.normalizer.normalize_str(f"a{character}")
    return len(pipeline.pre_tokenizer.pre_tokenize_str(text)) > 1


def _learn_elmo(stream: Iterator[str], vocabulary: int, specials: list[str], lowercase: bool) -> Tokenizer:
    """What stands between white space, by falling frequency; a line end, with the white space round it, is the last
    token."""
    _check_size(vocabulary, 2, "a word and the line end", specials)
    counts: Counter[str] = Counter()
    for text in stream:
        counts.update((text.lower() if lowercase else text).split())
    for token in specials:
        del counts[token]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - len(specials) - 1]
    tokens = [*specials, *ordered, LINE_END]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<UNK>"))
    lines = normalizers.Replace(Regex(r"\s*\n\s*"), LINE_END)
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), lines]) if lowercase else lines
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(LINE_END, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    return backend


def _learn_unigram(
    stream: Iterator[str], vocabulary: int, specials: list[str], lowercase: bool, byte_fallback: bool
) -> Tokenizer:
    """Kudo 2018, "Subword Regularization", section 3.2, over words with their leading space as "▁".

    Unlike SentencePiece's default, text is not normalised: it comes back unchanged, except "▁" itself and, without
    byte fallback, unknown characters.
    """
    fallback = BYTES if byte_fallback else []
    ascii_characters = [chr(code) for code in range(ord("!"), 0x7F)]
    _check_size(vocabulary, len(fallback) + len(ascii_characters), "bytes and ASCII characters", specials)
    backend = Tokenizer(models.Unigram())
    _set_unigram_pipeline(backend, lowercase)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary - len(fallback),
        special_tokens=specials,
        initial_alphabet=ascii_characters,  # so that the text "<0x41>" can always be written, and is no byte
        unk_token="<unk>",
        show_progress=False,
    )
    seen = set(ascii_characters)
    try:
        backend.train_from_iterator(_noting_characters(stream, seen), trainer)
    except Exception:  # among others, the library's own for an alphabet that is too large, without the numbers
        _check_size(vocabulary, _alphabet_size(seen, backend) + len(fallback), "characters and bytes", specials)
        raise
    _check_size(vocabulary, _alphabet_size(seen, backend) + len(fallback), "characters and bytes", specials)
    learned = json.loads(backend.to_str())["model"]
    pieces = _reproducible(learned["vocab"][len(specials) :])
    # Bytes are the last resort: below every piece.
    lowest = min(score for _, score in pieces) - 10.0
    scored = [(token, 0.0) for token in specials] + [(byte, lowest) for byte in fallback] + pieces
    finished = Tokenizer(models.Unigram(scored, specials.index("<unk>"), byte_fallback))
    _set_unigram_pipeline(finished, lowercase)
    return finished


def _noting_characters(stream: Iterator[str], seen: set[str]) -> Iterator[str]:
    for text in stream:
        seen.update(text)
        yield text


def _alphabet_size(seen: set[str], backend: Tokenizer) -> int:
    return len(set(backend.normalizer.normalize_str("".join(sorted(seen)))))


def _set_unigram_pipeline(backend: Tokenizer, lowercase: bool) -> None:
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps] if lowercase else steps)
    # As GPT-2's pattern: a word, number or run of other signs with the space before it; other white space.
    words = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?[^{SPACE}\s\p{{L}}\p{{M}}\p{{N}}]+"
    blanks = rf"[{SPACE}\s]+?(?={SPACE}?[^{SPACE}\s])|[{SPACE}\s]+"
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"{words}|{blanks}"), "isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    end = list(SPECIAL["unigram"].values()).index("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )


def _learn_words(stream: Iterator[str], vocabulary: int, specials: list[str], lowercase: bool) -> Tokenizer:
    """The most frequent words, numbers and signs as they are cut for Unigram; all others are "<unk>"."""
    _check_size(vocabulary, 1, "word", specials)
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    _set_unigram_pipeline(backend, lowercase)
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(stream, trainer)
    return backend


def _reproducible(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces with scores that are the same on every run, best first.

    The trainer adds floating-point numbers in the order of a hash map, which moves their last digits: round them. And
    it gives the characters that got no probability scores of min + 0.0001 i in that order: give them in Unicode's.
    """
    lowest = min(score for _, score in pieces)
    alphabet = [piece for piece, _ in pieces if len(piece) == 1]
    threshold = lowest + 0.0001 * len(alphabet)
    unlikely = sorted(piece for piece, score in pieces if len(piece) == 1 and score <= threshold)
    scores = dict(pieces) | {piece: lowest + 0.0001 * index for index, piece in enumerate(unlikely)}
    rounded = [(piece, round(score, 4)) for piece, score in scores.items()]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))
