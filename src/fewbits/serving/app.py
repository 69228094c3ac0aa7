"""The routes of OpenAI's interface, the key, and errors in its shape."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewbits.errors import RequestError
from fewbits.serving.body import read_body
from fewbits.serving.delivery import failure_body
from fewbits.serving.metrics import CONTENT_TYPE, Metrics
from fewbits.serving.requests import chat_request, parse_json, text_request
from fewbits.serving.responses import error_body, request_error_body
from fewbits.serving.scheduler import QueueFullError, ShuttingDownError
from fewbits.serving.service import Service

_CLIENT_LEFT = 499  # nobody reads it
_RETRY_SHUTDOWN = 10  # seconds, for a new server to be there
_OPEN_PATHS = frozenset(("/health",))
# Others are counted together: anyone may ask for any path.
_COUNTED_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"))


def make_app(service: Service, metrics: Metrics, *, api_key: str | None, body_limit: int) -> Starlette:
    """The application.

    Args:
        service: what answers.
        metrics: told of every answer's status, and shown at /metrics.
        api_key: asked for in ``Authorization: Bearer …`` everywhere but /health; None: not asked for.
        body_limit: bytes of a request's body at most.
    """
    since = int(time.time())

    async def chat(request: Request) -> Response:
        wanted = chat_request(parse_json(await read_body(request, body_limit)))
        return await service.chat(request, wanted)

    async def text(request: Request) -> Response:
        wanted = text_request(parse_json(await read_body(request, body_limit)))
        return await service.text(request, wanted)

    async def models(request: Request) -> Response:
        entry = {
            "id": service.model, "object": "model", "created": since, "owned_by": "fewbits",
            "max_model_len": service.context,
        }  # fmt: skip
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [entry]})
        if name != service.model:
            raise RequestError(
                "there is no such model", found=name[:80], allowed=service.model, status=404,
                code="model_not_found", param="model",
            )  # fmt: skip
        return JSONResponse(entry)

    async def health(request: Request) -> Response:
        del request
        load = service.scheduler.load()
        body = {"running": load.running, "waiting": load.waiting, "slots": load.slots}
        if not service.scheduler.alive:
            return JSONResponse({"status": "shutting down", **body}, 503)
        return JSONResponse({"status": "ok", **body})

    async def counted(request: Request) -> Response:
        del request
        return Response(metrics.text(service.scheduler.load()), media_type=CONTENT_TYPE)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
        Route("/health", health),
        Route("/metrics", counted),
    ]
    key_required = [Middleware(_KeyRequired, api_key=api_key)] if api_key else []
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Counted, metrics=metrics), *key_required],
        exception_handlers={
            RequestError: _refused,
            QueueFullError: _queue_full,
            ShuttingDownError: _shutting_down,
            HTTPException: _no_route,
            ClientDisconnect: _left,
            Exception: _failed,
        },
    )


class _Counted:
    """Counts answers by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in _COUNTED_PATHS else "other"
                self._metrics.answered(path, message["status"])
            await send(message)

        await self._app(scope, receive, noted if scope["type"] == "http" else send)


class _KeyRequired:
    """Lets requests through that have the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers: Mapping[bytes, bytes] = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(_digest(key.strip()), self._expected)
            if scheme.lower() != b"bearer" or not right:
                await _wrong_key(scheme != b"")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that comparing doesn't tell how long the right one is."""
    return hashlib.sha256(key).digest()


def _wrong_key(given: bool) -> Response:
    message = "the API key is wrong" if given else "an API key is needed"
    body = error_body(
        f"{message}: send it as Authorization: Bearer KEY", "authentication_error", "invalid_api_key"
    )
    return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer", "Connection": "close"})


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestError)
    unread = error.status in (408, 413)
    return JSONResponse(request_error_body(error), error.status, {"Connection": "close"} if unread else None)


async def _queue_full(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, QueueFullError)
    body = error_body(str(error), "overloaded_error", "queue_full")
    return JSONResponse(body, 429, {"Retry-After": str(error.retry_after)})


async def _shutting_down(request: Request, error: Exception) -> Response:
    del request
    body = error_body(str(error), "server_error", "shutting_down")
    return JSONResponse(body, 503, {"Retry-After": str(_RETRY_SHUTDOWN)})


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return JSONResponse(error_body(message, "invalid_request_error"), error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    del request, error
    return Response(status_code=_CLIENT_LEFT)


async def _failed(request: Request, error: Exception) -> Response:
    del request
    return JSONResponse(failure_body(error), 500)
