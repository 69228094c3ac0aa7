"""/metrics and /health, after a known number of requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest
from openai import OpenAI

from fewbits.serving.server import Server
from serving_model import ServedModel, call, running, until

LINE = re.compile(r'([a-z_]+)(\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})? ([0-9.+e-]+)')
LONG = "The quick brown fox jumps over the lazy dog. " * 3


def metrics(server: Server, **headers: str) -> Mapping[str, float]:
    """The values by name and labels; each has its type and explanation before it."""
    with urlopen(Request(f"{server.url}/metrics", headers=headers)) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = answer.read().decode()
    assert text.endswith("\n")
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    explained = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            explained.add(line.split(" ")[2])
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            kinds[name] = kind
        else:
            match = LINE.fullmatch(line)
            assert match, line
            name = match[1]
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert kinds.get(name) in ("counter", "gauge") or kinds.get(base) == "histogram", line
            assert {name, base} & explained
            assert name + (match[2] or "") not in values
            values[name + (match[2] or "")] = float(match[3])
    return values


def test_counts_are_those_of_what_was_asked(served: ServedModel) -> None:
    with running(served, served.engine(2)) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            before = metrics(server)
            asked: dict[str, Any] = {"model": "tiny", "prompt": LONG, "logit_bias": {"0": -100}}
            answers = [client.completions.create(**asked, max_tokens=count, n=2) for count in (3, 5)]
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model="tiny", prompt="", max_tokens=3)
            call(server, "GET", "/nowhere")
        assert until(lambda: metrics(server).get('fewbits_answers_total{reason="length"}') == 4, 5)
        after = metrics(server)

    usages = [answer.usage for answer in answers if answer.usage]
    prompt = usages[0].prompt_tokens
    steps = after["fewbits_step_tokens_total"]
    cached = after["fewbits_cached_prompt_tokens_total"]
    assert before["fewbits_steps_total"] == before["fewbits_written_tokens_total"] == 0
    assert after['fewbits_requests_total{path="/v1/completions",status="200"}'] == 2
    assert after['fewbits_requests_total{path="/v1/completions",status="400"}'] == 1
    assert after['fewbits_requests_total{path="other",status="404"}'] == 1
    assert after["fewbits_prompt_tokens_total"] == 4 * prompt
    assert cached == 3 * (prompt - 1)
    assert after["fewbits_written_tokens_total"] == 2 * (3 + 5)
    assert steps == 4 * prompt - cached + 2 * (3 + 5) - 4  # an answer's last token isn't fed
    assert after["fewbits_first_token_seconds_count"] == after["fewbits_answer_seconds_count"] == 4
    assert after['fewbits_answer_seconds_bucket{le="+Inf"}'] == 4
    assert after["fewbits_answer_seconds_sum"] >= after["fewbits_first_token_seconds_sum"] > 0
    assert (after["fewbits_answers_running"], after["fewbits_answers_waiting"]) == (0, 0)
    assert after["fewbits_slots"] == 2


def test_buckets_count_upwards(served: ServedModel) -> None:
    with running(served, served.engine(1)) as server:
        call(server, "POST", "/v1/completions", b'{"model": "tiny", "prompt": "The", "max_tokens": 2}')
        assert until(lambda: metrics(server)["fewbits_answer_seconds_count"] == 1, 5)
        values = metrics(server)
    counts = [value for name, value in values.items() if name.startswith("fewbits_answer_seconds_bucket")]

    assert len(counts) == 15
    assert counts == sorted(counts)
    assert counts[-1] == 1


def test_metrics_need_the_key_and_health_does_not(served: ServedModel) -> None:
    with running(served, served.engine(1), api_key="sesame") as server:
        assert call(server, "GET", "/metrics")[0] == 401
        assert call(server, "GET", "/health")[2]["status"] == "ok"
        assert metrics(server, Authorization="Bearer sesame")["fewbits_slots"] == 1
