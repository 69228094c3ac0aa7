"""From the scheduler's thread to the event loop, and from there to a client as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fewbits.serving.completion import Completion, Event, Failed, Finished, FinishReason, Piece, TokenLogprob
from fewbits.serving.responses import usage
from fewbits.serving.scheduler import Scheduler

_Queue: TypeAlias = asyncio.Queue[tuple[int, Event]]


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


class Mailbox:
    """Events on their way to the event loop, which is woken once for all that have gathered meanwhile."""

    def __init__(self) -> None:
        """Made in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()
        self._sent: list[tuple[_Queue, int, Event]] = []

    def send(self, queue: _Queue, index: int, event: Event) -> None:
        """Put an event into a queue; from any thread."""
        with self._lock:
            self._sent.append((queue, index, event))
            first = len(self._sent) == 1
        if first:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            sent, self._sent = self._sent, []
        for queue, index, event in sent:
            queue.put_nowait((index, event))


class RunningRequest:
    """The completions of one request, seen from the event loop."""

    def __init__(self, scheduler: Scheduler, mailbox: Mailbox, choices: int, *, stream: bool) -> None:
        """Nothing is queued yet.

        Args:
            scheduler: what runs completions.
            mailbox: by which events come.
            choices: completions of each prompt.
            stream: whether pieces are told as they come, rather than all in the end.
        """
        self.completions: list[Completion] = []
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._choices = choices
        self._stream = stream
        self._finished: dict[int, Finished] = {}
        self._queue: _Queue = asyncio.Queue()
        self._written: dict[int, Written] = {}

    def receiver(self, index: int) -> Callable[[Event], None]:
        """What the completion of this index calls with its events, from any thread.

        It doesn't know this object, which knows the completion: in a circle, samplers and constraints, large in memory,
        would stay until the garbage collector comes.
        """
        mailbox, queue = self._mailbox, self._queue
        written = self._written[index] = Written()

        def send(event: Event) -> None:
            mailbox.send(queue, index, event)

        def keep(event: Event) -> None:
            if isinstance(event, Piece):
                written.texts.append(event.text)
                written.logprobs += event.logprobs
            else:
                send(event)

        return send if self._stream else keep

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
        """What has come of the completions, when all are finished; for what isn't streamed."""
        async for index, event in self.events():
            if isinstance(event, Finished):
                self._written[index].reason = event.reason
        return [self._written[index] for index in range(len(self.completions))]

    def usage(self) -> dict[str, Any]:
        """What the completions have used, in OpenAI's shape."""
        return usage(self._finished, self._choices)

    def stop(self) -> None:
        """Leave the scheduler, whether finished or not; forgets the completions."""
        self._scheduler.cancel(self.completions)
        self.completions = []  # a client's leaving is an exception, whose traceback keeps this object for a while


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
