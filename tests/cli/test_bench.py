"""fewbits bench: its figures against a run that is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from fewbits.cli.main import app
from fewbits.engine.engine import open_engine
from serving_model import ServedModel

PROMPT, GENERATED = 96, 48
# Between two processes on a machine that others use, too; a repetition takes milliseconds, so that being interrupted
# can make most of them slow. Figures that come from nowhere would be wrong every time.
FACTOR, ATTEMPTS = 4.0, 5


def bench(path: Any, *options: str) -> dict[str, Any]:
    """What a process of its own tells."""
    command = [sys.executable, "-m", "fewbits", "bench", str(path), "--json", "--threads", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def timed(path: Any) -> tuple[float, float]:
    """Tokens a second of prefill and decoding, best of five."""
    engine = open_engine(path, threads=1, context=PROMPT)
    tokens = [7 + i % 300 for i in range(PROMPT)]
    prefill, decode = [], []
    for _ in range(5):
        engine.truncate(0, 0)
        start = time.perf_counter()
        engine.step([0] * PROMPT, tokens, [PROMPT - 1])
        prefill.append(time.perf_counter() - start)
        engine.truncate(0, 0)
        start = time.perf_counter()
        for token in tokens[:GENERATED]:
            engine.step([0], [token], [0])
        decode.append(time.perf_counter() - start)
    return PROMPT / min(prefill), GENERATED / min(decode)


def test_the_figures_are_those_of_a_run_that_is_timed_from_outside(served: ServedModel) -> None:
    options = ("--prompt", str(PROMPT), "--generate", str(GENERATED), "--repetitions", "3")
    ratios = []
    for _ in range(ATTEMPTS):
        started = time.perf_counter()
        told = bench(served.path, *options)
        elapsed = time.perf_counter() - started
        prefill, decode = timed(served.path)
        ratios.append(
            (told["prefill_tokens_per_second"] / prefill, told["decode_tokens_per_second"] / decode)
        )
        if all(1 / FACTOR < ratio < FACTOR for ratio in ratios[-1]):
            break
    else:
        pytest.fail(f"told over timed here, prefill and decoding: {ratios}")

    assert (told["prompt_tokens"], told["generated_tokens"]) == (PROMPT, GENERATED)
    # All repetitions happened within the process's life.
    spent = 3 * (PROMPT / told["prefill_tokens_per_second"] + GENERATED / told["decode_tokens_per_second"])
    assert spent < elapsed


def test_memory_and_bandwidth_are_plausible(served: ServedModel) -> None:
    told = bench(served.path, "--prompt", "8", "--generate", "8", "--repetitions", "1")
    size = served.path.stat().st_size
    gigabyte = 1e9

    # A tied embedding is read whole as the head, so a token reads nearly the file.
    assert 0.5 * size < told["bytes_per_token"] <= size
    assert 0.3 * gigabyte < told["read_bandwidth_bytes_per_second"] < 1000 * gigabyte
    share = (
        told["bytes_per_token"] * told["decode_tokens_per_second"] / told["read_bandwidth_bytes_per_second"]
    )
    assert told["bandwidth_share"] == pytest.approx(share)
    assert size < told["peak_memory_bytes"] < 2 * gigabyte
    assert 0 < told["engine_memory_bytes"] < told["peak_memory_bytes"]
    assert 0 < told["seconds_to_first_token"] < 60
    assert told["threads"] == 1


def test_twice_the_work_takes_longer(served: ServedModel) -> None:
    """Figures per second would stay the same if they came from nowhere; times must not."""
    short = bench(served.path, "--prompt", "8", "--generate", "8", "--repetitions", "3")
    long = bench(served.path, "--prompt", "8", "--generate", "200", "--repetitions", "3")

    assert 200 / long["decode_tokens_per_second"] > 5 * 8 / short["decode_tokens_per_second"]


def test_people_get_the_same_figures_in_lines(served: ServedModel) -> None:
    result = CliRunner().invoke(
        app, ["bench", str(served.path), "--prompt", "4", "--generate", "4", "--repetitions", "1"]
    )

    assert result.exit_code == 0
    for word in ("prefill", "decode", "memory", "load", "peak memory", "tokens/s", "GB/s"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt", "0"), "prompt must be positive: found 0"),
        (("--generate", "-1"), "generate must be positive"),
        (("--repetitions", "0"), "repetitions must be positive"),
        (("--threads", "0"), "threads must be positive"),
        (("--kv-cache", "q3"), "no such key-value cache"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    served: ServedModel, options: tuple[str, str], words: str
) -> None:
    result = CliRunner().invoke(app, ["bench", str(served.path), *options])

    assert result.exit_code == 2
    assert words in result.stderr
