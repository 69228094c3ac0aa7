"""Starting and stopping the server."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import uvicorn

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.engine.engine import Engine
from fewbits.errors import ServingError
from fewbits.serving.app import make_app
from fewbits.serving.grammar import Grammars
from fewbits.serving.metrics import Metrics
from fewbits.serving.prompts import PromptReader
from fewbits.serving.scheduler import STEP_TOKENS, Scheduler
from fewbits.serving.service import Service

BODY_LIMIT = 4 << 20
QUEUE_LIMIT = 128
_BACKLOG = 2048  # connections that the system keeps until they are accepted


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, and the limits.

    Attributes:
        port: 0 for any that is free.
        api_key: None if none is asked for.
        queue_limit: completions that may wait for a slot.
        body_limit: bytes of a request's body.
        step_tokens: see `Scheduler`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    queue_limit: int = QUEUE_LIMIT
    body_limit: int = BODY_LIMIT
    step_tokens: int = STEP_TOKENS


class Server:
    """A server that listens from its making on, and answers while it runs."""

    def __init__(self, engine: Engine, tokenizer: GgufTokenizer, model: str, options: ServerOptions) -> None:
        """A server for one model.

        Raises:
            ServingError: the address can't be listened at.
        """
        self.model = model
        self.context = engine.context
        self._socket = _listen(options.host, options.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        metrics = Metrics()
        self.scheduler = Scheduler(
            engine, queue_limit=options.queue_limit, step_tokens=options.step_tokens, metrics=metrics
        )
        prompts = PromptReader(tokenizer, engine.metadata, engine.vocabulary)
        grammars = Grammars(tokenizer, engine.vocabulary)
        service = Service(
            model, tokenizer, prompts, grammars, self.scheduler, engine.context, engine.vocabulary
        )
        app = make_app(service, metrics, api_key=options.api_key, body_limit=options.body_limit)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", backlog=_BACKLOG,
            server_header=False, timeout_keep_alive=60,
        )  # fmt: skip
        self._uvicorn = _UvicornServer(config, self.scheduler)

    def run(self) -> None:
        """Answer until `stop` is called or a signal comes, and then until all that was accepted is answered.

        At a second signal those who wait are told that there will be no answer; a third Ctrl-C waits for nobody.
        """
        self.scheduler.start()
        try:
            with _signals_end_quietly():
                self._uvicorn.run(sockets=[self._socket])
        finally:
            self.scheduler.close(finish=not self._uvicorn.force_exit)
            self._socket.close()

    def stop(self) -> None:
        """Begin to shut down; from any thread."""
        self._uvicorn.should_exit = True


class _UvicornServer(uvicorn.Server):
    """Uvicorn, with a way to end between finishing everything and dropping connections."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._abandoning: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called with each signal, at any point of the main thread."""
        if self.should_exit and self._abandoning is None:
            # In a thread, since the main one may hold the scheduler's lock.
            self._abandoning = threading.Thread(target=self._scheduler.close, kwargs={"finish": False})
            self._abandoning.start()
        else:
            super().handle_exit(sig, frame)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        # Its protocol by name: else asyncio doesn't know that it is TCP, and leaves Nagle's algorithm on, by which a
        # piece of an answer waits for the client's word on the last one, 40 ms where that is delayed.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServingError(
            f"can't listen at {host}:{port}",
            found=getattr(error, "strerror", None) or str(error),
            action="Choose another --host or --port",
        ) from error


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Uvicorn raises the signals that it has obeyed once more when it is done; here that's no failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
