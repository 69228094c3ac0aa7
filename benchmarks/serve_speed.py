"""What serving many costs beside the engine itself: tokens a second of the same steps with less or more around them.

    python benchmarks/serve_speed.py MODEL.gguf [--clients 8] [--tokens 128] [--threads 2] [--rounds 5]

The engine alone steps as many sequences as there are clients, with tokens made up. The scheduler adds the choice of
tokens, by several samplings, and their text; the server adds HTTP, with clients on the same cores. The best and the
median of the rounds, which go through all rows one after another. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer, tokenizer_from_metadata
from fewbits.engine.engine import Engine, open_engine
from fewbits.engine.sampling import Sampling, SamplingOptions
from fewbits.engine.text_stream import TextStream
from fewbits.serving.completion import Completion, Event, Finished
from fewbits.serving.grammar import Grammars
from fewbits.serving.scheduler import Scheduler
from fewbits.serving.token_choice import Adjustments, LogitChanges
from llama_cpp import processor
from server_process import server_process

SAMPLINGS: dict[str, SamplingOptions] = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, repetition 1.1": {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1,
    },
}  # fmt: skip
SCHEMA = {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 1000}


class WithoutChoice:
    """An engine that takes the same token always."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def choose(self, samplers: Any, logits: Any, recents: Any) -> list[int]:
        del logits, recents
        return [1000] * len(samplers)


class Bench:
    """One model's measurements."""

    def __init__(self, path: Path, clients: int, tokens: int, threads: int) -> None:
        self.engine = open_engine(path, threads=threads, context=512, sequences=clients)
        self.tokenizer: GgufTokenizer = tokenizer_from_metadata(self.engine.metadata)
        self.grammar = Grammars(self.tokenizer, self.engine.vocabulary).json(SCHEMA, "schema")
        self.clients, self.tokens, self.path, self.threads = clients, tokens, path, threads
        self.prompts = [
            self.tokenizer.encode(
                f"{i} things that everybody should know about rivers, bread and owls are these:"
            )
            for i in range(clients)
        ]

    def alone(self) -> float:
        """The engine's steps and nothing else."""
        for i, prompt in enumerate(self.prompts):
            self.engine.truncate(i, 0)
            self.engine.step([i] * len(prompt), prompt, [len(prompt) - 1])
        numbers = np.arange(self.clients, dtype=np.int32)
        random = np.random.default_rng(0)
        started = time.perf_counter()
        for _ in range(self.tokens):
            drawn = random.integers(0, self.engine.vocabulary, self.clients).astype(np.int32)
            self.engine.step(numbers, drawn, numbers)
        return self.clients * self.tokens / (time.perf_counter() - started)

    def scheduled(self, sampling: SamplingOptions, *, choice: bool = True, form: bool = False) -> float:
        """By the scheduler, from the first token told to the last."""
        engine: Any = self.engine if choice else WithoutChoice(self.engine)
        times: list[float] = []
        left = [self.clients]
        done = threading.Event()

        def note(event: Event) -> None:
            times.append(time.perf_counter())
            if isinstance(event, Finished):
                left[0] -= 1
                if not left[0]:
                    done.set()

        scheduler = Scheduler(engine)
        scheduler.start()
        scheduler.submit([self._completion(i, sampling, form, note) for i in range(self.clients)])
        done.wait()
        scheduler.close()
        return self.clients * self.tokens / (times[-1] - times[0])

    def _completion(
        self, i: int, sampling: SamplingOptions, form: bool, note: Callable[[Event], None]
    ) -> Completion:
        changes = None
        if form:
            changes = LogitChanges(Adjustments(), self.grammar.constraint(), self.engine.vocabulary)
        return Completion(
            prompt=self.prompts[i], limit=self.tokens, sampler=Sampling(**sampling, seed=i).sampler(),
            text=TextStream(self.tokenizer.token_bytes), end_ids=frozenset(), on_event=note, changes=changes,
            recent=64 if "repetition_penalty" in sampling else 0,
        )  # fmt: skip

    @contextmanager
    def server(self) -> Iterator[tuple[str, int]]:
        """A server in a process: the model's name and its port."""
        options = ["--context", "512", "--slots", str(self.clients), "--threads", str(self.threads)]
        with server_process(self.path, options) as (_, name, url):
            port = urlsplit(url).port
            assert port is not None
            yield name, port

    def served(self, where: tuple[str, int], sampling: SamplingOptions, stream: bool) -> float:
        """By the server, from the first request to the end of the last answer."""
        ends = {str(token): -100 for token in self.tokenizer.eos_ids}  # all answers are of one length
        threads = []
        started = time.perf_counter()
        for i, prompt in enumerate(self.prompts):
            body = {
                "model": where[0], "prompt": prompt, "max_tokens": self.tokens, "seed": i, "stream": stream,
                "temperature": 0, "logit_bias": ends, **sampling,
            }  # fmt: skip
            threads.append(threading.Thread(target=_ask, args=(where[1], json.dumps(body))))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return self.clients * self.tokens / (time.perf_counter() - started)


def _ask(port: int, body: str) -> None:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", body)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    bench = Bench(arguments.model, arguments.clients, arguments.tokens, arguments.threads)
    drawn: SamplingOptions = {"temperature": 1.0, "top_p": 0.95}
    with bench.server() as where:
        rows: dict[str, Callable[[], float]] = {
            "engine alone": bench.alone,
            "scheduler, the same token always": lambda: bench.scheduled({}, choice=False),
            **{f"scheduler, {name}": _scheduled(bench, options) for name, options in SAMPLINGS.items()},
            "scheduler, greedy, JSON by a schema": lambda: bench.scheduled({}, form=True),
            "server, greedy": lambda: bench.served(where, {}, False),
            "server, greedy, streamed": lambda: bench.served(where, {}, True),
            "server, temperature 1, top-p 0.95, streamed": lambda: bench.served(where, drawn, True),
        }
        figures: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(arguments.rounds):
            for name, row in rows.items():
                figures[name].append(row())
    told = {
        name: {"best": round(max(values), 1), "median": round(statistics.median(values), 1)}
        for name, values in figures.items()
    }
    setting = {"model": arguments.model.stem, "clients": arguments.clients, "threads": arguments.threads}
    print(json.dumps({**setting, "processor": processor(), "tokens_per_second": told}, indent=2))


def _scheduled(bench: Bench, sampling: SamplingOptions) -> Callable[[], float]:
    return lambda: bench.scheduled(sampling)


if __name__ == "__main__":
    main()
