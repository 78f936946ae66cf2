"""`POST /v1/embeddings`: a vector of length 1 for each text."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from stemma.inference.embeddings import embed_tokens
from stemma.serving.context import context_of
from stemma.serving.errors import wrong
from stemma.serving.sampling import check_tokens
from stemma.serving.schemas import EmbeddingBody
from stemma.serving.served import Served

router = APIRouter()

_AT_ONCE = 16  # texts between two steps of the engine


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, http: Request) -> Response:
    """Embed one or several texts."""
    context = context_of(http)
    served = context.serves(body.model)
    rows = await context.in_background(http, _rows, body, served)
    hidden: int = served.model.config.hidden
    if len(rows) > 2048:
        raise wrong("input", f"{len(rows)} texts, expected at most 2048")
    if body.dimensions is not None and body.dimensions > hidden:
        raise wrong("dimensions", f"dimensions is {body.dimensions}, the model's vectors have {hidden}")
    data: list[dict[str, Any]] = []
    for start in range(0, len(rows), _AT_ONCE):
        vectors = await context.call(http, _embedding(rows[start : start + _AT_ONCE]))
        for vector in _shortened(vectors, body.dimensions):
            content: Any = vector.tolist()
            if body.encoding_format == "base64":
                content = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": len(data), "embedding": content})
    tokens = sum(map(len, rows))
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": counts})


def _rows(body: EmbeddingBody, served: Served) -> list[list[int]]:
    given: Any = body.input
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    rows: list[list[int]] = served.tokenizer.encode_batch(given) if isinstance(given[0], str) else given
    for row in rows:
        check_tokens(row, served, "input")
        if served.context is not None and len(row) > served.context:
            message = f"a text has {len(row)} tokens, the model's context is {served.context}"
            raise wrong("input", message, "context_length_exceeded")
    return rows


def _embedding(rows: list[list[int]]) -> Any:
    def run(served: Served) -> np.ndarray:
        options = {**served.embedding, "normalize": False}
        return embed_tokens(served.model, served.tokenizer, rows, **options)

    return run


def _shortened(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Return the first numbers of vectors, made as long as 1."""
    cut = vectors[:, :dimensions]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
