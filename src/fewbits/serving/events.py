"""From the scheduler's thread to the event loop, and from there to a client as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fewbits.serving.completion import Completion, Event, Failed, Finished, FinishReason, Piece, TokenLogprob
from fewbits.serving.responses import usage
from fewbits.serving.scheduler import Scheduler


@dataclass
class Written:
    """What has come of one completion."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)


class RunningRequest:
    """The completions of one request, seen from the event loop."""

    def __init__(self, scheduler: Scheduler, choices: int) -> None:
        """Nothing is queued yet; `choices`: completions of each prompt."""
        self.completions: list[Completion] = []
        self._choices = choices
        self._finished: dict[int, Finished] = {}
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def receiver(self, index: int) -> Callable[[Event], None]:
        """What the completion of this index calls with its events, from any thread."""

        def put(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return put

    def start(self, completions: Sequence[Completion]) -> None:
        """Queue the completions.

        Raises:
            QueueFullError: no room.
            ShuttingDownError: nothing new is taken.
        """
        self._scheduler.submit(completions)
        self.completions = list(completions)

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """What happens, with the index of the completion, until all are finished.

        Raises:
            Exception: what made one of them fail.
        """
        while len(self._finished) < len(self.completions):
            index, event = await self._queue.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                self._finished[index] = event
            yield index, event

    async def all(self) -> list[Written]:
        """What comes of the completions in the end."""
        answers = [Written() for _ in self.completions]
        async for index, event in self.events():
            if isinstance(event, Finished):
                answers[index].reason = event.reason
            else:
                answers[index].texts.append(event.text)
                answers[index].logprobs += event.logprobs
        return answers

    def usage(self) -> dict[str, Any]:
        """What the completions have used, in OpenAI's shape."""
        return usage(self._finished, self._choices)

    def stop(self) -> None:
        """Leave the scheduler, whether finished or not."""
        self._scheduler.cancel(self.completions)


class EventStream(StreamingResponse):
    """Server-sent events that end the request's completions when the client leaves.

    Source of the form: WHATWG HTML, section 9.2, server-sent events.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], running: RunningRequest) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies would hold events back
        super().__init__((f"data: {event}\n\n" async for event in events), headers=headers)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; cancelled by Starlette when the client has disconnected."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.stop()
