"""Keep `fewbits serve` under load, and fail if a request that it accepted is lost or answered wrongly.

    python benchmarks/serve_load.py MODEL.gguf [--minutes 10] [--clients 64]

Clients ask without pause, through the openai package, for conversations and texts, whole and streamed; some leave in
mid-stream, some send what must be refused. Greedy answers to one prompt must be the same at every time. In the end the
server is told to stop while all clients wait for an answer, and must give it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI

# Some of them begin alike, so that slots hold a part of them.
SUBJECTS = ("rivers", "bread", "copper", "winter", "sailing ships", "the number seven", "owls", "paper")
QUESTIONS = ("Tell me about {}.", "Tell me about {} in three sentences, please.", "Why would anyone like {}?")
PROMPTS = tuple(question.format(subject) for question in QUESTIONS for subject in SUBJECTS)
LONG = " ".join(PROMPTS)
SETTLED = 0.25  # of the time: by then every slot has been full


@dataclass
class Tally:
    """What has happened so far.

    Attributes:
        counts: outcomes by name.
        faults: what must not happen, in words.
        first: the greedy answer to each request that was seen first.
    """

    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)

    def answered(self, kind: str, key: str, text: str, reason: str | None, tokens: int) -> None:
        self.counts["answered"] += 1
        self.counts[kind] += 1
        self.tokens += tokens
        if reason not in ("stop", "length"):
            self.faults.append(f"{kind} {key}: ended without a reason")
        if self.first.setdefault(key, text) != text:
            self.faults.append(f"{kind} {key}: {text!r} instead of {self.first[key]!r}")


class Client:
    """One that asks, again and again."""

    def __init__(self, client: AsyncOpenAI, model: str, tally: Tally, seed: int) -> None:
        self._client = client
        self._model = model
        self._tally = tally
        self._random = random.Random(seed)  # noqa: S311

    async def ask(self) -> None:
        """One request of a random kind, with every outcome counted."""
        kinds = (self._chat, self._streamed_chat, self._text, self._leaving, self._refused)
        (kind,) = self._random.choices(kinds, (3, 5, 3, 2, 1))
        name = kind.__name__.strip("_")
        try:
            await kind()
        except openai.RateLimitError:
            self._tally.counts["queue full"] += 1
            await asyncio.sleep(1)
        except openai.OpenAIError as error:
            self._tally.faults.append(f"{name}: {type(error).__name__}: {error}")

    def _fields(self) -> tuple[str, dict[str, Any]]:
        prompt = LONG if self._random.random() < 0.03 else self._random.choice(PROMPTS)
        most = self._random.choice((8, 24, 48))
        return f"{most} {prompt[:60]}", {
            "model": self._model, "messages": [{"role": "user", "content": prompt}], "max_tokens": most,
            "temperature": 0,
        }  # fmt: skip

    async def _chat(self) -> None:
        key, fields = self._fields()
        answer = await self._client.chat.completions.create(**fields)
        choice = answer.choices[0]
        self._tally.answered(
            "whole", key, choice.message.content, choice.finish_reason, answer.usage.completion_tokens
        )

    async def _streamed_chat(self) -> None:
        key, fields = self._fields()
        text, reason, tokens = "", None, -1
        options = {"include_usage": True}
        async for chunk in await self._client.chat.completions.create(
            **fields, stream=True, stream_options=options
        ):
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        if tokens < 0:
            self._tally.faults.append(f"stream {key}: no usage")
        self._tally.answered("streamed", key, text, reason, max(tokens, 0))

    async def _text(self) -> None:
        prompts = self._random.sample(PROMPTS, 2)
        answer = await self._client.completions.create(
            model=self._model, prompt=prompts, max_tokens=16, temperature=0
        )
        for choice in answer.choices:
            tokens = answer.usage.completion_tokens if choice.index == 0 else 0
            self._tally.answered(
                "text", f"text {prompts[choice.index]}", choice.text, choice.finish_reason, tokens
            )

    async def _leaving(self) -> None:
        _, fields = self._fields()
        stream = await self._client.chat.completions.create(**fields | {"max_tokens": 200}, stream=True)
        left = self._random.randint(1, 6)
        async for _ in stream:
            left -= 1
            if not left:
                break
        await stream.close()
        self._tally.counts["left"] += 1

    async def _refused(self) -> None:
        wrong: dict[str, Any] = self._random.choice(
            ({"prompt": ""}, {"prompt": [0] * 100_000}, {"prompt": "a", "temperature": -1})
        )
        try:
            await self._client.completions.create(model=self._model, **wrong)
        except openai.BadRequestError:
            self._tally.counts["refused"] += 1
        else:
            self._tally.faults.append(f"not refused: {str(wrong)[:60]}")


async def press(url: str, model: str, clients: int, seconds: float, process: Any) -> tuple[Tally, list[int]]:
    """Load for some seconds, then the end; what happened, and the server's memory once settled and at the end."""
    tally = Tally()
    end = time.monotonic() + seconds
    memory: list[int] = []

    async def keep_asking(client: Client) -> None:
        while time.monotonic() < end:
            await client.ask()

    async def watch() -> None:
        for share in (SETTLED, 1.0):
            await asyncio.sleep(max(0.0, end - time.monotonic() - (1 - share) * seconds))
            memory.append(resident(process.pid))
        await asyncio.sleep(
            0.5
        )  # what was sent last has been accepted by now; most of it is still to be answered
        process.send_signal(signal.SIGTERM)

    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=600) as connection:
        made = [Client(connection, model, tally, seed) for seed in range(clients)]
        await asyncio.gather(watch(), *(keep_asking(client) for client in made))
    return tally, memory


def resident(process: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=128)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "fewbits", "serve", str(arguments.model), "--port", "0"]
    command += ["--slots", str(arguments.slots), "--queue", str(arguments.queue), "--context", "2048"]
    command += ["--threads", str(arguments.threads)] if arguments.threads else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.match(r"(.+) at (\S+/v1),", line)
            if found is None:
                raise SystemExit(line + process.stderr.read())
            seconds = arguments.minutes * 60
            tally, memory = asyncio.run(press(found[2], found[1], arguments.clients, seconds, process))
            status = process.wait(120)
            said = process.stderr.read()
        finally:
            process.kill()
    if status or said:
        tally.faults.append(f"the server ended with status {status}: {said[-500:]}")
    result = {
        "minutes": arguments.minutes, "clients": arguments.clients, "slots": arguments.slots,
        "outcomes": dict(sorted(tally.counts.items())), "faults": len(tally.faults),
        "written_tokens_per_second": round(tally.tokens / seconds, 1),
        "resident_bytes_settled": memory[0], "resident_bytes_end": memory[1],
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    for fault in tally.faults[:20]:
        print(fault, file=sys.stderr)
    return 1 if tally.faults or not tally.counts["answered"] else 0


if __name__ == "__main__":
    sys.exit(main())
