"""`POST /v1/infill`: what fills the blanks of a text, for the families that do this."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from stemma.inference.filling import fill
from stemma.serving.context import context_of
from stemma.serving.errors import wrong
from stemma.serving.schemas import InfillBody
from stemma.serving.served import Served

router = APIRouter()


@router.post("/v1/infill")
async def infill(body: InfillBody, http: Request) -> Response:
    """Fill the blanks of one or several texts; the likeliest fillings, best first, each with its log-probability."""
    context = context_of(http)
    served = context.serves(body.model)
    texts = [body.text] if isinstance(body.text, str) else body.text
    if len(texts) > context.limits.texts:
        raise wrong("text", f"{len(texts)} texts, expected at most {context.limits.texts}")
    data = []
    for number, text in enumerate(texts):  # one at a time: the engine goes on in between
        found = await context.call(http, _filling(text, body))
        data.append({"index": number, "text": text, "fillings": [asdict(one) for one in found[0]]})
    return JSONResponse({"object": "list", "data": data, "model": served.name})


def _filling(text: str, body: InfillBody) -> Any:
    def run(served: Served) -> Any:
        return fill(served.model, served.tokenizer, text, top_k=body.top_k, max_piece_tokens=body.max_piece_tokens)

    return run
