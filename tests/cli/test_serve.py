"""fewbits serve, as a process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.request import urlopen

import pytest
from openai import APIError, OpenAI
from typer.testing import CliRunner

from fewbits.cli.main import app
from serving_model import ServedModel, until


@contextmanager
def process(served: ServedModel, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The command, once it listens; its first line and URL."""
    command = [sys.executable, "-m", "fewbits", "serve", str(served.path), "--port", "0", "--threads", "1"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        try:
            lines = [started.stderr.readline()]
            while not (found := re.search(r" at (http://\S+/v1)", lines[-1])) and lines[-1]:
                lines.append(started.stderr.readline())
            assert found, "".join(lines)
            yield started, "".join(lines), found[1]
        finally:
            started.kill()


def test_it_serves_until_it_is_told_to_end_and_finishes_what_it_accepted(served: ServedModel) -> None:
    with process(served, "--context", "200", "--slots", "2") as (started, line, url):
        client = OpenAI(base_url=url, api_key="any", max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 190, "temperature": 3.0}
        with client:
            [model] = client.models.list()
            stream = client.completions.create(**asked, seed=2, stream=True)
            chunks = [next(stream)]
            started.send_signal(signal.SIGTERM)
            chunks += list(stream)
        status = started.wait(60)
        assert started.stderr is not None
        rest = started.stderr.read()

    assert line.startswith("tiny at http://127.0.0.1:")
    assert "2 slots of 200 tokens" in line
    assert model.id == "tiny"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert (status, rest) == (0, "")


def test_sigterm_lets_all_that_was_accepted_finish_and_takes_nothing_more(served: ServedModel) -> None:
    """Two answers in slots and six in the queue, streamed or not, get the same as without a signal."""
    usual = {"model": "tiny", "max_tokens": 1500, "temperature": 2.0, "logit_bias": {"0": -100}}
    asked: list[dict[str, Any]] = [{**usual, "prompt": f"The {i}", "seed": i} for i in range(8)]
    with process(served, "--context", "1600", "--slots", "2") as (started, _, url):
        with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            expected = [client.completions.create(**fields).choices[0].text for fields in asked]

            def ask(i: int) -> str:
                if i % 2:
                    return client.completions.create(**asked[i]).choices[0].text
                parts = client.completions.create(**asked[i], stream=True)
                return "".join(part.choices[0].text for part in parts)

            with ThreadPoolExecutor(8) as pool:
                answers = [pool.submit(ask, i) for i in range(8)]
                assert until(lambda: busy(url) >= 6, 60)
                started.send_signal(signal.SIGTERM)
                refused = False
                while started.poll() is None and not refused:
                    try:
                        busy(url)
                    except (OSError, HTTPException):
                        refused = True
                told = [answer.result(120) for answer in answers]
        status = started.wait(60)
        assert started.stderr is not None
        rest = started.stderr.read()

    assert told == expected
    assert refused
    assert (status, rest) == (0, "")


def busy(url: str) -> int:
    """Answers that the server has accepted and not finished, by a connection of its own."""
    with urlopen(url.replace("/v1", "/health"), timeout=30) as answer:
        load = json.loads(answer.read())
    return int(load["running"] + load["waiting"])


def test_a_second_ctrl_c_tells_those_who_wait_and_ends(served: ServedModel) -> None:
    with process(served, "--name", "mine", "--context", "100000", "--slots", "1") as (started, line, url):
        assert line.startswith("mine at ")
        asked: dict[str, Any] = {"model": "mine", "prompt": "The", "max_tokens": 90_000, "temperature": 0}
        with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            stream = client.completions.create(**asked, stream=True)
            next(stream)
            started.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                started.wait(1)
            started.send_signal(signal.SIGINT)
            with pytest.raises(APIError, match="the server is shutting down"):
                list(stream)
        status = started.wait(30)
        assert started.stderr is not None
        rest = started.stderr.read()

    assert (status, rest) == (0, "")


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *arguments], env=environment)
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", "70000"), "--port is out of range: found 70000; allowed: 0 to 65535"),
        (("--slots", "0"), "--slots is out of range: found 0; allowed: 1 to"),
        (("--queue", "-1"), "--queue is out of range: found -1; allowed: 0 to"),
        (("--max-body", "some"), "not a size: found 'some'"),
        (("--kv-cache", "q2"), "no such key-value cache: found q2; allowed: f16, q8, q4"),
        (("--host", "203.0.113.1"), "can't listen at 203.0.113.1:8080"),
        (("--api-key", " "), "the API key is empty"),
        (("--context", "0"), "context must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused(
    served: ServedModel, options: tuple[str, ...], words: str
) -> None:
    status, said = run(str(served.path), *options)

    assert status == 2
    assert words in said


def test_what_is_no_gguf_file_is_refused(served: ServedModel) -> None:
    status, said = run(str(served.directory / "config.json"))

    assert status == 2
    assert "config.json" in said


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewbits.cli.serve.find_spec", lambda name: None)
    status, said = run(str(served.path))

    assert status == 2
    assert said == (
        "fewbits: Serving needs the package starlette, which isn't installed. Run: pip install 'fewbits[serve]'\n"
    )


def test_the_key_may_come_from_the_environment(served: ServedModel) -> None:
    status, said = run(str(served.path), FEWBITS_API_KEY=" ")

    assert status == 2
    assert "FEWBITS_API_KEY" in said
