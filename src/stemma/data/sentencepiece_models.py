"""SentencePiece `.model` files (T5's Unigram; Llama's and Mistral's BPE) as pipelines of the `tokenizers` library.

A model file is a protocol buffer: the pieces with their scores and types, and how text is normalised before. Nothing in
it is executed. Kudo and Richardson 2018, "SentencePiece"; the rules below follow google/sentencepiece's C++ sources.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stemma.errors import InputError

SPACE = "▁"  # U+2581 stands for a space inside pieces

# Piece types and model types of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2


def read_sentencepiece(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Convert a SentencePiece model to a tokenizer with the same ids, and the names of its special tokens.

    Where the ids can differ from the C++ library: inside the text of a control piece, in what follows a user-defined
    symbol, and (Unigram with a normalisation table) where a character that the table changes carries combining marks,
    which `tokenizers` normalises as one. Raises InputError for a damaged file and for what cannot be converted.
    """
    proto = _parse(path)
    _check(proto, path)
    unigram = proto.trainer_spec.model_type == UNIGRAM
    tokenizer = Tokenizer(_unigram(proto) if unigram else _bpe(proto))
    steps = _normalizer_steps(proto)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    if unigram:
        tokenizer.pre_tokenizer = _pre_tokenizer(proto)
    tokenizer.decoder = _decoder(proto)
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != USER_DEFINED)
            for piece in proto.pieces
            if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
    )
    names = _special_names(proto)
    _add_template(tokenizer, names, unigram)
    return tokenizer, names


def _parse(path: Path) -> Any:
    try:
        import sentencepiece.sentencepiece_model_pb2 as model_format
    except ImportError:
        raise InputError(
            f"{path}: reading a SentencePiece model needs an extra: pip install 'stemma-lm[sentencepiece]'"
        ) from None
    from google.protobuf.message import DecodeError

    proto = model_format.ModelProto()  # type: ignore[attr-defined]  # made when the module is imported
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable SentencePiece model ({error})") from None
    return proto


def _check(proto: Any, path: Path) -> None:
    if not proto.pieces or not proto.HasField("trainer_spec"):
        raise InputError(f"{path}: not a SentencePiece model; expected pieces and a trainer_spec in the file")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (UNIGRAM, BPE):
        kind = {3: "word", 4: "character"}.get(trainer.model_type, str(trainer.model_type))
        raise InputError(f"{path}: a SentencePiece model of kind '{kind}'; expected unigram or bpe")
    unsupported = {
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "escape_whitespaces = false": not normalizer.escape_whitespaces,
        "unused pieces": any(piece.type == UNUSED for piece in proto.pieces),
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    for feature, present in unsupported.items():
        if present:
            raise InputError(f"{path}: a SentencePiece model with {feature}, which cannot be converted")
    if not any(piece.type == UNKNOWN for piece in proto.pieces):
        raise InputError(f"{path}: a SentencePiece model without an unknown piece; expected one")


def _unigram(proto: Any) -> models.Unigram:
    # Nine digits tell every float32 and, unlike more, come back from tokenizer.json as they were.
    pieces = [(piece.piece, float(f"{piece.score:.9g}")) for piece in proto.pieces]
    return models.Unigram(pieces, _unknown(proto), proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    return models.BPE(
        ids,
        _merges(proto),
        unk_token=proto.pieces[_unknown(proto)].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put two pieces together to a third, best score first.

    SentencePiece's BPE joins the neighbours whose union is the piece of highest score; a list of merges says the same
    once each piece is listed with all its divisions. Control and byte pieces are never joined.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    merges = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append((-score, left, right))
    # Sorted by score alone: the sort is stable, so that equal scores stay in the order of their ids.
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def _normalizer_steps(proto: Any) -> list[normalizers.Normalizer]:
    specification = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if specification.precompiled_charsmap:
        steps.append(normalizers.Precompiled(specification.precompiled_charsmap))
    if specification.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +"), ""))
        steps.append(normalizers.Replace(Regex(r" {2,}"), " "))
        steps.append(normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), ""))
    if specification.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return steps


def _pre_tokenizer(proto: Any) -> pre_tokenizers.PreTokenizer:
    """Cut before each space where no piece reaches over one: the same best path, found word by word."""
    steps = []
    if not any(SPACE in piece.piece[1:] for piece in proto.pieces):
        steps.append(pre_tokenizers.Split(SPACE, "merged_with_next"))
    if proto.trainer_spec.byte_fallback:
        # The model would take the text "<0x41>" for the byte piece of that name: cut it before its last character.
        steps.append(pre_tokenizers.Split(Regex("(?<=<0x[0-9A-F]{2})>"), "merged_with_next"))
    return pre_tokenizers.Sequence(steps)


def _decoder(proto: Any) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix or proto.normalizer_spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", left=1, right=0))
    return decoders.Sequence(steps)


def _unknown(proto: Any) -> int:
    return next(index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)


def _special_names(proto: Any) -> dict[str, str]:
    trainer = proto.trainer_spec
    ids = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "pad_token": trainer.pad_id}
    names = {role: proto.pieces[index].piece for role, index in ids.items() if 0 <= index < len(proto.pieces)}
    return {**names, "unk_token": proto.pieces[_unknown(proto)].piece}


def _add_template(tokenizer: Tokenizer, names: dict[str, str], unigram: bool) -> None:
    """What transformers puts round a text by default: T5 ends it with eos, Llama and Mistral begin it with bos."""
    role = "eos_token" if unigram else "bos_token"
    if role not in names:
        return
    token = names[role]
    single, pair = (f"$A {token}", f"$A {token} $B {token}") if unigram else (f"{token} $A", f"{token} $A {token} $B")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token))]
    )
