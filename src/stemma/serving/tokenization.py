"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as lm-evaluation-harness asks for them."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from stemma.errors import InputError
from stemma.serving.context import context_of
from stemma.serving.schemas import DetokenizeBody, TokenizeBody
from stemma.serving.served import Served

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, http: Request) -> Response:
    """Return the ids of a text, in which the names of special tokens stand for these."""
    context = context_of(http)
    served = context.serves(body.model)
    tokens = await context.in_background(http, _encode, body, served)
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": served.context})


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, http: Request) -> Response:
    """Return the text of ids, special tokens by their names."""
    context = context_of(http)
    served = context.serves(body.model)
    text = await context.in_background(http, served.tokenizer.decode, body.tokens, False)
    return JSONResponse({"prompt": text})


@router.get("/tokenizer_info")
async def tokenizer_info(http: Request) -> Response:
    """Return the names of the special tokens and the chat template, null where there is none."""
    served = context_of(http).serves(None)
    names = {role: served.tokenizer.names.get(role) for role in ("eos_token", "bos_token", "pad_token")}
    if names["eos_token"] is None:  # what ends a text goes by another name: [SEP]
        names["eos_token"] = _separator(served)
    return JSONResponse({**names, "chat_template": served.template.source if served.template else None})


def _encode(body: TokenizeBody, served: Served) -> list[int]:
    try:
        return served.finder.encode(body.prompt, add_special_tokens=body.add_special_tokens).ids
    except (TypeError, UnicodeEncodeError):
        raise InputError("prompt: half of a surrogate pair, which is not valid Unicode") from None


def _separator(served: Served) -> str | None:
    try:
        return served.tokenizer.token(served.tokenizer.separator)
    except InputError:
        return None
