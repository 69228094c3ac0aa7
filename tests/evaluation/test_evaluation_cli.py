"""With --json, standard output is one object; errors are one message and exit status 2."""

import json
import subprocess
import sys

import pytest

from evaluation_models import CONTEXT

RUN = "import sys, typer; from fewbits.cli.{0} import {0}; sys.argv[0] = '{0}'; typer.run({0})"


def run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RUN.format(command), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_evaluate_prints_one_object(original, noisy, text_file):
    done = run(
        "evaluate", noisy, "--against", original, "--text", text_file, "--context", CONTEXT, "--chunks", 2,
        "--threads", 1, "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert set(result) >= {
        "kl_mean", "kl_mean_error", "kl_p99", "perplexity", "perplexity_error", "perplexity_reference",
        "perplexity_reference_error", "top1_agreement", "top1_agreement_error", "tokens", "chunks", "context",
        "text", "text_sha256", "source", "quantized", "seconds",
    }  # fmt: skip
    assert result["kl_mean"] > 0
    assert result["source"] == str(original)
    assert "evaluate: 2 chunks" in done.stderr


def test_generate_prints_the_text_alone_or_one_object(original):
    plain = run("generate", original, "the cat", "-n", 4, "--threads", 1)
    as_json = run("generate", original, "the cat", "-n", 4, "--threads", 1, "--json")

    assert as_json.returncode == 0, as_json.stderr
    result = json.loads(as_json.stdout)
    assert {"text", "tokens", "tokens_per_second"} <= set(result)
    assert result["tokens"] <= 4
    assert plain.stdout == result["text"] + "\n"
    assert "tokens/s" in plain.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "evaluate",
            ["{original}", "--against", "{original}", "--text", "/nowhere.txt"],
            "can't read the text",
        ),
        ("evaluate", ["/nowhere", "--against", "{original}"], "no model at /nowhere"),
        ("generate", ["/nowhere", "hello"], "no model at /nowhere"),
    ],
)
def test_errors_are_one_message_with_status_2(original, command, arguments, message):
    done = run(command, *(argument.format(original=original) for argument in arguments))

    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
