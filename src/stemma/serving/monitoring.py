"""`/v1/models`, `/health` and `/metrics`: what is served, whether, and how it goes."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stemma.serving.context import context_of
from stemma.serving.served import Served

router = APIRouter()


@router.get("/v1/models")
async def models(http: Request) -> Response:
    """Return the model that is served, in a list."""
    return JSONResponse({"object": "list", "data": [_about(context_of(http).serves(None))]})


@router.get("/v1/models/{name:path}")
async def model(name: str, http: Request) -> Response:
    """Return what there is to know of a model."""
    return JSONResponse(_about(context_of(http).serves(name)))


@router.get("/health")
async def health(http: Request) -> Response:
    """Return 200 when the model is served, 503 while it is loaded, drained or broken."""
    state = context_of(http).thread.state
    return JSONResponse({"status": state}, 200 if state == "ok" else 503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    """Return counts and times for Prometheus."""
    thread = context_of(http).thread
    gauges = {"open_texts": thread.open_texts, "ready": int(thread.state == "ok")}
    return PlainTextResponse(thread.metrics.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")


def _about(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "stemma",
        "family": served.family,
        "context_length": served.context,
        "max_model_len": served.context,
    }
