"""Continuous batching: one thread owns the engine and gives every answer its share of each step.

A step takes one token of every answer that is being written, and fills up to a budget with tokens of prompts that
are being read, so that reading a long prompt delays the others by a step of that size and no more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fewbits.engine.engine import Engine
from fewbits.errors import EngineError, ServingError
from fewbits.serving.completion import Completion, Failed
from fewbits.serving.metrics import Metrics
from fewbits.serving.slots import Slots
from fewbits.serving.token_choice import Floats

STEP_TOKENS = 256  # by then matrix products run at full speed
_MEMORY = 0.8  # of the mean of answers' durations: the weight of what was before


class QueueFullError(ServingError):
    """No place in the queue; `retry_after` says in how many seconds there may be one."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            "the server is busy", found=f"{waiting} requests waiting", action=f"Try again in {retry_after} s"
        )
        self.retry_after = retry_after


class ShuttingDownError(ServingError):
    """The server finishes what it has accepted and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", action="Try again when it is back")


@dataclass(frozen=True)
class Load:
    """How busy the scheduler is: answers in slots, answers waiting for one, and slots."""

    running: int
    waiting: int
    slots: int


class Scheduler:
    """Runs completions on an engine, in a thread of its own."""

    def __init__(
        self,
        engine: Engine,
        *,
        queue_limit: int = 128,
        step_tokens: int = STEP_TOKENS,
        metrics: Metrics | None = None,
    ) -> None:
        """A scheduler that has yet to be started.

        Args:
            engine: nobody else may use it from then on.
            queue_limit: completions that may wait while all slots are taken.
            step_tokens: tokens of one step at most, but one of every answer that is being written.
            metrics: told of steps and answers.
        """
        self.queue_limit = queue_limit
        self._metrics = metrics or Metrics()
        self._step_tokens = step_tokens
        self._slots = Slots(engine)
        self._slot_count = engine.sequences
        self._waiting: deque[Completion] = deque()
        self._started: dict[Completion, float] = {}
        self._seconds = 1.0  # that an answer takes
        self._closing = False
        self._changed = threading.Condition()  # guards all that other threads touch
        self._thread = threading.Thread(target=self._run, name="fewbits-scheduler", daemon=True)

    def start(self) -> None:
        """Begin to take completions."""
        self._thread.start()

    def submit(self, completions: Sequence[Completion]) -> None:
        """Queue completions, all or none.

        Raises:
            QueueFullError: not enough room.
            ShuttingDownError: nothing new is taken.
        """
        with self._changed:
            self.check_room(len(completions))
            now = time.monotonic()
            for completion in completions:
                completion.submitted = now
            self._waiting += completions
            self._changed.notify()

    def check_room(self, count: int) -> None:
        """Raise as `submit` would, without queueing."""
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            waiting = sum(not completion.cancelled for completion in self._waiting)
            room = self._slots.free + self.queue_limit - waiting
            if count > room:
                turns = (waiting + count) / self._slot_count
                raise QueueFullError(waiting, max(1, min(60, round(turns * self._seconds))))

    def cancel(self, completions: Sequence[Completion]) -> None:
        """Forget completions: their slots are free before the next step. Those that are done don't mind."""
        with self._changed:
            for completion in completions:
                completion.cancelled = True
            self._changed.notify()

    @property
    def capacity(self) -> int:
        """Completions that may be accepted at a time."""
        return self._slot_count + self.queue_limit

    @property
    def alive(self) -> bool:
        """Whether it takes completions."""
        return self._thread.is_alive() and not self._closing

    def load(self) -> Load:
        """How busy it is at the moment."""
        with self._changed:
            waiting = sum(not completion.cancelled for completion in self._waiting)
            return Load(len(self._slots.used), waiting, self._slot_count)

    def close(self, *, finish: bool = True) -> None:
        """Take nothing new, and return when all that was accepted is finished; else when it has been told so."""
        with self._changed:
            self._closing = True
            if not finish:
                for completion in (*self._waiting, *self._slots.used):
                    if not completion.cancelled:
                        completion.on_event(Failed(ShuttingDownError()))
                        completion.cancelled = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while self._await_work():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - whatever it is: the next request is served again
                for completion in list(self._slots.used):
                    self._fail(completion, error)

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when there never will be."""
        with self._changed:
            while True:
                self._admit()
                if self._slots.used:
                    return True
                if self._closing and not self._waiting:
                    return False
                self._changed.wait()

    def _admit(self) -> None:
        """Free the slots of those who left, and give free slots to those who came first."""
        for completion in [used for used in self._slots.used if used.cancelled]:
            self._slots.leave(completion)
            self._started.pop(completion, None)
            self._ended(completion, "cancelled")
        while self._waiting and self._slots.free:
            completion = self._waiting.popleft()
            if completion.cancelled:
                continue
            try:
                self._slots.take(completion)
            except Exception as error:  # noqa: BLE001 - no memory to copy a prefix: this answer's end only
                completion.on_event(Failed(error))
            else:
                self._started[completion] = time.monotonic()
        if all(completion.cancelled for completion in self._waiting):
            self._waiting.clear()

    def _step(self) -> None:
        for completion, error in self._slots.join_leaders():
            self._fail(completion, error)
        shares = share_step(self._slots.ready(), self._step_tokens)
        if not shares:
            return
        try:
            self._advance(shares)
        except _StepError:
            # One of them must be the reason: each alone, so that the others go on.
            for share in shares:
                try:
                    self._slots.restore(share[0])
                    self._advance([share])
                except Exception as error:  # noqa: BLE001 - memory, a kernel's refusal: this answer's end only
                    self._fail(share[0], error.__cause__ if isinstance(error, _StepError) else error)

    def _advance(self, shares: Sequence[tuple[Completion, int]]) -> None:
        writing = [count == completion.pending for completion, count in shares]
        try:
            logits, rows = self._slots.feed(shares)
        except Exception as error:
            raise _StepError from error
        self._metrics.stepped(sum(count for _, count in shares))
        ready: dict[int, Completion] = {}  # by row of logits
        for (completion, _), writes, own in zip(shares, writing, rows, strict=True):
            if completion.cancelled:
                continue
            try:
                completion.read(logits[own.start : own.stop])
                if writes and completion.limit:
                    completion.prepare(logits[own[-1]])
            except Exception as error:  # noqa: BLE001 - no token may follow, …: this answer's end only
                self._fail(completion, error)
                continue
            if completion.reason is not None:
                self._end(completion)
            elif writes:
                ready[own[-1]] = completion
        if ready:
            chosen = logits if len(ready) == len(logits) else logits[list(ready)]
            self._write(list(ready.values()), chosen)

    def _write(self, completions: Sequence[Completion], logits: Floats) -> None:
        """Choose a token for each answer by its logits, float32 [M, V]."""
        tokens = self._slots.engine.choose(
            [completion.sampler for completion in completions],
            logits,
            [completion.recent_tokens() for completion in completions],
        )
        for completion, token in zip(completions, tokens, strict=True):
            try:
                if token < 0:
                    raise EngineError(
                        "the model's logits are no numbers", action="Its weights are damaged, or overflow"
                    )
                completion.write(token)
            except Exception as error:  # noqa: BLE001 - this answer's end only
                self._fail(completion, error)
                continue
            if completion.written == 1 or (completion.reason and not completion.written):
                self._metrics.began(time.monotonic() - completion.submitted)
            if completion.reason is not None:
                self._end(completion)

    def _end(self, completion: Completion) -> None:
        self._leave(completion)
        self._ended(completion, completion.reason or "stop")

    def _leave(self, completion: Completion, *, empty: bool = False) -> None:
        with self._changed:
            self._slots.leave(completion, empty=empty)
            seconds = time.monotonic() - self._started.pop(completion)
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds

    def _fail(self, completion: Completion, error: BaseException | None) -> None:
        reason = error if isinstance(error, Exception) else RuntimeError("the step failed")
        if not completion.cancelled:
            completion.on_event(Failed(reason))
        self._leave(completion, empty=True)
        self._ended(completion, "failed")

    def _ended(self, completion: Completion, reason: str) -> None:
        self._metrics.ended(completion, reason, time.monotonic() - completion.submitted)


class _StepError(Exception):
    """The engine failed or refused a step; the cause says why."""


def share_step(completions: Sequence[Completion], budget: int) -> list[tuple[Completion, int]]:
    """How many tokens of each answer go into the next step.

    One of every answer that is being written, whatever the budget. Of what is left, the prompt that came first gets
    half, so that it always gets on; the other half goes to the shortest prompts, which would otherwise wait for
    long ones; what they don't need is the first one's again.

    Args:
        completions: in the order of arrival, each with something pending.
        budget: tokens in all.
    """
    counts = {completion: 1 for completion in completions if completion.pending == 1}
    reading = [completion for completion in completions if completion.pending > 1]
    if reading:
        left = max(budget - len(counts), len(reading))
        oldest, *others = reading
        counts[oldest] = min(oldest.most_fed, (left + 1) // 2)
        left -= counts[oldest]
        for completion in sorted(others, key=lambda other: other.pending):
            counts[completion] = min(completion.most_fed, left)
            left -= counts[completion]
        counts[oldest] += min(oldest.most_fed - counts[oldest], left)
    return [(completion, counts[completion]) for completion in completions if counts[completion]]
