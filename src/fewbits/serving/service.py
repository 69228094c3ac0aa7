"""What a request becomes: checked, tokenized, queued, answered whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.engine.text_stream import TextStream
from fewbits.errors import FewbitsError, RequestError, ServingError
from fewbits.serving.completion import Completion, Finished
from fewbits.serving.events import EventStream, RunningRequest
from fewbits.serving.prompts import PromptReader
from fewbits.serving.requests import ChatRequest, Parameters, TextRequest
from fewbits.serving.responses import Answer, ChatAnswer, TextAnswer, error_body
from fewbits.serving.scheduler import Scheduler

_LOG = logging.getLogger(__name__)
DONE = "[DONE]"


@dataclass(frozen=True)
class Service:
    """One model, ready to answer.

    Attributes:
        model: its name in requests.
        context: tokens of prompt and answer together, at most.
    """

    model: str
    tokenizer: GgufTokenizer
    prompts: PromptReader
    scheduler: Scheduler
    context: int

    async def chat(self, request: Request, wanted: ChatRequest) -> Response:
        """Answer a conversation."""
        self._check(wanted.parameters, 1)
        prompt = await asyncio.to_thread(self.prompts.conversation, wanted.messages)
        answer = ChatAnswer(self.model, self.tokenizer.token_bytes)
        return await self._answer(request, answer, {"messages": [prompt]}, wanted.parameters)

    async def text(self, request: Request, wanted: TextRequest) -> Response:
        """Continue texts."""
        self._check(wanted.parameters, len(wanted.prompts))
        prompts = [await asyncio.to_thread(self.prompts.prompt, prompt) for prompt in wanted.prompts]
        answer = TextAnswer(self.model, self.tokenizer.token_bytes)
        return await self._answer(request, answer, {"prompt": prompts}, wanted.parameters)

    def _check(self, parameters: Parameters, prompts: int) -> None:
        """Refuse what can be refused before any work: another model, or no room."""
        if parameters.model != self.model:
            raise RequestError(
                "there is no such model",
                found=parameters.model[:80],
                allowed=self.model,
                status=404,
                code="model_not_found",
                param="model",
            )
        most = self.scheduler.capacity
        if prompts > most:
            raise RequestError("too many prompts", found=prompts, allowed=f"{most} or fewer", param="prompt")
        self.scheduler.check_room(prompts)

    async def _answer(
        self, request: Request, answer: Answer, prompts: dict[str, list[list[int]]], parameters: Parameters
    ) -> Response:
        ((param, listed),) = prompts.items()
        running = RunningRequest(self.scheduler)
        running.start(
            [self._completion(running, i, prompt, param, parameters) for i, prompt in enumerate(listed)]
        )
        if parameters.stream:
            return EventStream(self._stream(answer, running, parameters), running)
        try:
            return await self._whole(request, answer, running, parameters)
        finally:
            running.stop()

    def _completion(
        self, running: RunningRequest, index: int, prompt: list[int], param: str, parameters: Parameters
    ) -> Completion:
        room = self.context - len(prompt)
        if room < 1:
            raise RequestError(
                "the prompt is longer than the context",
                found=f"{len(prompt)} tokens",
                allowed=f"{self.context - 1} or fewer, so that there is room for an answer",
                code="context_length_exceeded",
                param=param,
            )
        penalized = parameters.sampling.repetition_penalty != 1
        return Completion(
            prompt=prompt,
            limit=room if parameters.max_tokens is None else min(parameters.max_tokens, room),
            sampler=parameters.sampling.sampler(),
            text=TextStream(self.tokenizer.token_bytes, parameters.stop),
            end_ids=self.tokenizer.eos_ids,
            on_event=running.receiver(index),
            top_logprobs=parameters.top_logprobs,
            recent=parameters.sampling.repetition_window if penalized else 0,
        )

    async def _whole(
        self, request: Request, answer: Answer, running: RunningRequest, parameters: Parameters
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
            choices = [
                answer.choice(
                    i, one.text, answer.logprobs(one.logprobs, 0) if with_logprobs else None, one.reason
                )
                for i, one in enumerate(answers)
            ]
            return JSONResponse(answer.whole(choices, running.finished))
        finally:
            written.cancel()
            left.cancel()

    async def _stream(
        self, answer: Answer, running: RunningRequest, parameters: Parameters
    ) -> AsyncIterator[str]:
        with_usage = parameters.include_usage
        letters = [0] * len(running.completions)
        for index in range(len(running.completions)):
            if opening := answer.opening(index):
                yield _compact(answer.chunk(opening, with_usage=with_usage))
        try:
            async for index, event in running.events():
                if isinstance(event, Finished):
                    part = answer.part(index, "", None, event.reason)
                else:
                    told = answer.logprobs(event.logprobs, letters[index]) if event.logprobs else None
                    part = answer.part(index, event.text, told, None)
                    letters[index] += answer.letters(event.logprobs)
                yield _compact(answer.chunk(part, with_usage=with_usage))
        except Exception as error:  # noqa: BLE001 - the status is sent already: this is the place left to say it
            yield _compact(failure_body(error))
            return
        if with_usage:
            yield _compact(answer.usage_chunk(running.finished))
        yield DONE


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
