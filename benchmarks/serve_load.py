"""Keep `fewbits serve` under load, and fail if a request that it accepted is lost or answered wrongly.

    python benchmarks/serve_load.py MODEL.gguf [--minutes 10] [--clients 200]

Clients ask without pause, through the openai package, for conversations, texts, several choices and JSON, whole and
streamed; some leave in mid-stream, some send what must be refused. Answers to one prompt by one seed must be equal at
every time, none may fail by the server's own count, and its memory must not grow once clients have had some answers. In
the end the server is told to stop while all clients wait for an answer, and must give it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
from openai import AsyncOpenAI

from llama_cpp import processor
from server_process import server_process

# Some of them begin alike, so that slots hold a part of them.
SUBJECTS = ("rivers", "bread", "copper", "winter", "sailing ships", "the number seven", "owls", "paper")
QUESTIONS = ("Tell me about {}.", "Tell me about {} in three sentences, please.", "Why would anyone like {}?")
PROMPTS = tuple(question.format(subject) for question in QUESTIONS for subject in SUBJECTS)
LONG = " ".join(PROMPTS)
# Seconds, and answers per client, after which memory may not grow any more; every slot has been full before.
SETTLED, SETTLED_ANSWERS = 60.0, 5
GROWTH = 1.05  # of memory since then, at most
FORM = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "wet": {"type": "boolean"}},
    "required": ["name", "wet"],
    "additionalProperties": False,
}


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
        kinds = (
            self._chat, self._streamed_chat, self._text, self._choices, self._json, self._leaving, self._refused
        )  # fmt: skip
        (kind,) = self._random.choices(kinds, (3, 5, 3, 1, 1, 2, 1))
        name = kind.__name__.strip("_")
        try:
            await kind()
        except openai.RateLimitError:
            self._tally.counts["queue full"] += 1
            await asyncio.sleep(1)
        except openai.OpenAIError as error:
            self._tally.faults.append(f"{name}: {type(error).__name__}: {error}")

    async def fill(self) -> None:
        """Ask for what needs the most memory: a long answer to a long prompt, and one by a schema."""
        fields = {"model": self._model, "messages": [{"role": "user", "content": LONG}], "max_tokens": 200}
        await self._client.chat.completions.create(**fields)
        await self._json()

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

    async def _choices(self) -> None:
        """Several answers; each by its seed is another one, but the same at every time."""
        key, fields = self._fields()
        answer = await self._client.chat.completions.create(**fields | {"temperature": 1.0, "seed": 3}, n=3)
        for choice in answer.choices:
            tokens = answer.usage.completion_tokens if choice.index == 0 else 0
            name = f"choice {choice.index} {key}"
            self._tally.answered("choice", name, choice.message.content, choice.finish_reason, tokens)

    async def _json(self) -> None:
        """An answer by a schema."""
        _, fields = self._fields()
        prompt = fields["messages"][0]["content"][:60]
        form = {"type": "json_schema", "json_schema": {"name": "form", "schema": FORM}}
        answer = await self._client.chat.completions.create(
            **fields | {"max_tokens": 100}, response_format=form
        )
        choice, text = answer.choices[0], answer.choices[0].message.content
        tokens = answer.usage.completion_tokens
        self._tally.answered("json", f"json {prompt}", text, choice.finish_reason, tokens)
        if choice.finish_reason == "stop" and not isinstance(json.loads(text)["wet"], bool):
            self._tally.faults.append(f"json {prompt}: {text!r}")

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


async def press(
    url: str, model: str, clients: int, slots: int, seconds: float, process: Any
) -> tuple[Tally, list[int], dict[str, int]]:
    """Load for some seconds, then the end.

    Returns:
        What happened, the server's memory once settled and at the end, and its own count of answers by how they ended,
        a moment before the end.
    """
    tally = Tally()
    memory: list[int] = []
    counted: dict[str, int] = {}

    async def keep_asking(client: Client) -> None:
        while time.monotonic() < end:
            await client.ask()

    async def watch() -> None:
        await asyncio.sleep(min(SETTLED, seconds / 4))
        while tally.counts["answered"] < SETTLED_ANSWERS * clients and time.monotonic() < start + seconds / 2:
            await asyncio.sleep(1)
        memory.append(resident(process.pid))
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        memory.append(resident(process.pid))
        counted.update(await asyncio.to_thread(answers_counted, url))
        await asyncio.sleep(0.5)  # what was sent last is accepted by now; most of it is still to be answered
        process.send_signal(signal.SIGTERM)

    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=600) as connection:
        made = [Client(connection, model, tally, seed) for seed in range(clients)]
        await asyncio.gather(*(client.fill() for client in made[: 3 * slots]))
        start = time.monotonic()  # once all slots have been full
        end = start + seconds
        await asyncio.gather(watch(), *(keep_asking(client) for client in made))
    return tally, memory, counted


def resident(process: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def answers_counted(url: str) -> dict[str, int]:
    """Answers by how they ended, as the server counts them."""
    with urlopen(url.removesuffix("/v1") + "/metrics") as answer:  # noqa: S310 - the server started here
        text = answer.read().decode()
    return {
        reason: int(count)
        for reason, count in re.findall(r'fewbits_answers_total\{reason="(\w+)"\} (\d+)', text)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=512)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    options = ["--slots", str(arguments.slots), "--queue", str(arguments.queue), "--context", "2048"]
    options += ["--threads", str(arguments.threads)] if arguments.threads else []
    with server_process(arguments.model, options) as (process, name, url):
        assert process.stderr is not None
        seconds = arguments.minutes * 60
        tally, memory, counted = asyncio.run(
            press(url, name, arguments.clients, arguments.slots, seconds, process)
        )
        status = process.wait(300)
        said = process.stderr.read()
    if status or said:
        tally.faults.append(f"the server ended with status {status}: {said[-500:]}")
    if counted.get("failed"):
        tally.faults.append(f"{counted['failed']} answers failed by the server's count")
    if memory[1] > GROWTH * memory[0]:
        tally.faults.append(f"the server's memory grew from {memory[0]:,} to {memory[1]:,} bytes")
    result = {
        "minutes": arguments.minutes, "clients": arguments.clients, "slots": arguments.slots,
        "outcomes": dict(sorted(tally.counts.items())), "faults": len(tally.faults),
        "written_tokens_per_second": round(tally.tokens / seconds, 1),
        "resident_bytes_settled": memory[0], "resident_bytes_end": memory[1], "counted_by_server": counted,
        "processor": processor(),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    for fault in tally.faults[:20]:
        print(fault, file=sys.stderr)
    return 1 if tally.faults or not tally.counts["answered"] else 0


if __name__ == "__main__":
    sys.exit(main())
