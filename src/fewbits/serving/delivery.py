"""Answers on their way to the client: whole, or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fewbits.errors import FewbitsError, ServingError
from fewbits.serving.call_reader import AnswerReader
from fewbits.serving.completion import Finished, Piece
from fewbits.serving.events import EventStream, RunningRequest
from fewbits.serving.requests import Parameters
from fewbits.serving.responses import Answer, Json, error_body

_LOG = logging.getLogger(__name__)
DONE = "[DONE]"


async def deliver(
    request: Request,
    answer: Answer,
    running: RunningRequest,
    parameters: Parameters,
    readers: Sequence[AnswerReader],
) -> Response:
    """Answer a request whose completions are on their way.

    Args:
        request: the client's.
        answer: the shape.
        running: the completions; stopped when the client leaves, and in the end.
        parameters: what the client asked for.
        readers: one for each completion.
    """
    if parameters.stream:
        return EventStream(_stream(answer, running, parameters, readers), running)
    try:
        return await _whole(request, answer, running, parameters, readers)
    finally:
        running.stop()


async def _whole(
    request: Request,
    answer: Answer,
    running: RunningRequest,
    parameters: Parameters,
    readers: Sequence[AnswerReader],
) -> Response:
    written = asyncio.ensure_future(running.all())
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((written, left), return_when=asyncio.FIRST_COMPLETED)
        if not written.done():
            raise ClientDisconnect
        try:
            answers = written.result()
        except ServingError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine's or the sampler's, told as it is in a stream
            return JSONResponse(failure_body(error), 500)
        with_logprobs = parameters.top_logprobs is not None
        choices = []
        for i, (one, reader) in enumerate(zip(answers, readers, strict=True)):
            said, rest = reader.add(one.text), reader.finish()
            logprobs = answer.logprobs(one.logprobs, 0) if with_logprobs else None
            choices.append(answer.choice(i, said.text + rest.text, said.calls, logprobs, one.reason))
        return JSONResponse(answer.whole(choices, running.usage()))
    finally:
        written.cancel()
        left.cancel()


async def _stream(
    answer: Answer, running: RunningRequest, parameters: Parameters, readers: Sequence[AnswerReader]
) -> AsyncIterator[str]:
    with_usage = parameters.include_usage
    parts = _Parts(answer, readers)
    for index in range(len(readers)):
        if opening := answer.opening(index):
            yield _compact(answer.chunk(opening, with_usage=with_usage))
    try:
        async for index, event in running.events():
            if part := parts.next(index, event):
                yield _compact(answer.chunk(part, with_usage=with_usage))
    except Exception as error:  # noqa: BLE001 - the status is sent already: this is the place left to say it
        yield _compact(failure_body(error))
        return
    if with_usage:
        yield _compact(answer.usage_chunk(running.usage()))
    yield DONE


class _Parts:
    """Events of completions as parts of choices."""

    def __init__(self, answer: Answer, readers: Sequence[AnswerReader]) -> None:
        self._answer = answer
        self._readers = readers
        self._letters = [0] * len(readers)
        self._calls = [0] * len(readers)

    def next(self, index: int, event: Piece | Finished) -> Json | None:
        """What a client is told of an event; None: nothing yet."""
        reader = self._readers[index]
        if isinstance(event, Finished):
            return self._answer.part(index, reader.finish().text, (), self._calls[index], None, event.reason)
        said = reader.add(event.text)
        told = self._answer.logprobs(event.logprobs, self._letters[index]) if event.logprobs else None
        self._letters[index] += self._answer.letters(event.logprobs)
        if not (said.text or said.calls or told):
            return None
        before = self._calls[index]
        self._calls[index] += len(said.calls)
        return self._answer.part(index, said.text, said.calls, before, told, None)


def failure_body(error: Exception) -> dict[str, Any]:
    """What a client is told of an answer that failed; what isn't meant for people goes to the log."""
    if isinstance(error, FewbitsError):
        return error_body(str(error), "server_error", "answer_failed")
    _LOG.error("an answer failed", exc_info=error)
    return error_body(
        "the server failed to compute an answer; its log says why", "server_error", "answer_failed"
    )


async def _disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
