"""A tiny GGUF file with a chat template, engines for it, and a server around them on a free port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import write_llama
from tokenizers import Tokenizer

import fewbits
from fewbits.checkpoint.gguf import open_gguf
from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer, tokenizer_from_metadata
from fewbits.engine.engine import Engine, open_engine
from fewbits.serving.server import Server, ServerOptions
from model_files import write_tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As many models write calls: JSON between marks, here one call or more.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls %}{{ '\\n' if not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{{ '<|endoftext|>' if message.role == 'assistant' else '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 128


@dataclass(frozen=True)
class ServedModel:
    """The file, and what it says."""

    directory: Path
    path: Path

    @cached_property
    def metadata(self) -> Any:
        return open_gguf(self.path).metadata

    @cached_property
    def tokenizer(self) -> GgufTokenizer:
        return tokenizer_from_metadata(self.metadata)

    def engine(self, sequences: int, context: int = CONTEXT) -> Engine:
        return open_engine(self.path, threads=1, context=context, sequences=sequences)

    def greedy(self, prompt: list[int], count: int, first: int = 0) -> list[int]:
        """The likeliest continuation by tokens from `first` on, one by one on an engine of its own."""
        engine = self.engine(1)
        tokens = list(prompt)
        for at in range(len(prompt) + count - 1):
            logits = engine.step([0], [tokens[at]], [0])
            if at >= len(prompt) - 1:
                tokens.append(int(logits[0, first:].argmax()) + first)
        return tokens[len(prompt) :]


def write_served_model(
    folder: Path, template: str = TEMPLATE, control_tokens: tuple[str, ...] = ()
) -> ServedModel:
    directory = write_llama(folder / "model")
    if control_tokens:
        write_tokenizer(directory, 384 - len(control_tokens))
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.add_special_tokens(list(control_tokens))
        tokenizer.save(str(directory / "tokenizer.json"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    fewbits.quantize(directory, folder / "tiny.gguf", format="Q8_0", effort="fast")
    return ServedModel(directory, folder / "tiny.gguf")


class Hooked:
    """An engine with something done before and after each step."""

    def __init__(
        self,
        engine: Any,
        before: Callable[[list[int], list[int]], None] = lambda sequences, tokens: None,
        after: Callable[[Any], Any] = lambda logits: logits,
    ) -> None:
        self._engine = engine
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, sequences: Any, tokens: Any, wanted: Any) -> Any:
        self._before(sequences.tolist(), tokens.tolist())
        return self._after(self._engine.step(sequences, tokens, wanted))


def slow(engine: Any, seconds: float = 0.02) -> Hooked:
    return Hooked(engine, lambda sequences, tokens: time.sleep(seconds))


@contextmanager
def running(model: ServedModel, engine: Any, **options: Any) -> Iterator[Server]:
    """A server in a thread."""
    server = Server(engine, model.tokenizer, "tiny", ServerOptions(port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def call(
    server: Server, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a request made by hand."""
    address = urlsplit(server.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, json.loads(content)
    finally:
        connection.close()


def load(server: Server) -> dict[str, Any]:
    """What /health says."""
    _, _, body = call(server, "GET", "/health")
    return dict(body)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; whether it came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
