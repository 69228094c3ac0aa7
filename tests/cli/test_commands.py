"""The command line as its users meet it: a process, its exit status, what it prints where."""

import json
import os
import re
import subprocess
import sys

import pytest

import fewbits


def run(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "fewbits", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def one_object(text):
    assert text.count("\n") == 1, "more than one line on standard output"
    return json.loads(text)


def test_quantize_inspect_plan_print_one_json_object_and_nothing_else(tiny_llama, tmp_path):
    output = tmp_path / "out.gguf"
    made = one_object(
        run("quantize", tiny_llama, output, "--format", "q4_k", "--effort", "fast", "--json").stdout
    )
    seen = one_object(run("inspect", output, "--json").stdout)
    planned = one_object(run("plan", tiny_llama, "--format", "Q4_K", "--json").stdout)

    assert made["size"] == output.stat().st_size == planned["size"]
    assert made["bits_per_weight"] == pytest.approx(planned["bits_per_weight"])
    assert {t["name"] for t in seen["tensors"]} == set(planned["tensors"])


def test_evaluate_prints_one_json_object_with_the_promised_keys(tiny_llama, sample_text, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q8_0")

    done = run(
        "evaluate", tmp_path / "out.gguf", "--against", tiny_llama, "--text", sample_text, "--context", 64,
        "--chunks", 3, "--json",
    )  # fmt: skip

    said = one_object(done.stdout)
    promised = {"kl_mean", "kl_mean_error", "kl_p99", "perplexity", "perplexity_reference", "top1_agreement"}
    assert promised | {"tokens"} <= set(said)
    assert 0 < said["kl_mean"] < 0.1


def test_plan_writes_a_file_that_quantize_runs(tiny_llama, tmp_path):
    run("plan", tiny_llama, "--size", "1.3MB", "-o", tmp_path / "plan.json")
    run("quantize", tiny_llama, tmp_path / "out.gguf", "--plan", tmp_path / "plan.json")

    assert (tmp_path / "out.gguf").stat().st_size <= 1_300_000


def test_an_importance_matrix_goes_from_one_command_to_another(tiny_llama, sample_text, tmp_path):
    text = ["--calibration", sample_text, "--tokens", 2048]
    said = one_object(run("imatrix", tiny_llama, tmp_path / "imatrix.gguf", *text, "--json").stdout)
    assert said["tensors"] == 22
    assert said["uncovered"] == []
    assert said["warnings"] == []

    made = one_object(
        run(
            "quantize", tiny_llama, tmp_path / "out.gguf", "--size", "1.3MB", "--imatrix",
            tmp_path / "imatrix.gguf", "--json",
        ).stdout
    )  # fmt: skip
    assert made["size"] == (tmp_path / "out.gguf").stat().st_size <= 1_300_000
    again = run("imatrix", tiny_llama, tmp_path / "imatrix.gguf", *text, status=2)
    assert "exists" in again.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["imatrix", "{model}", "{out}"],
        ["plan", "{model}", "--frontier"],
        ["quantize", "{model}", "{out}", "--effort", "balanced"],
    ],
)
def test_calibrating_without_pytorch_names_what_to_install(tiny_llama, tmp_path, arguments):
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "sys.modules['torch'] = None\n"
        "from fewbits.cli.main import main\n"
        "main()"
    )
    arguments = [a.format(model=tiny_llama, out=tmp_path / "out.gguf") for a in arguments]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'fewbits[models]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_continues_a_prompt_from_either_container(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="F32")

    ids = {
        tuple(one_object(run("generate", path, "Few bits", "-n", 8, "--json").stdout)["ids"])
        for path in (tiny_llama, tmp_path / "out.gguf")
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quantize", "{model}", "{out}", "--format", "Q4_X"], "Q4_K"),
        (["quantize", "{model}", "{out}", "--to", "zip"], "gguf"),
        (["quantize", "{model}", "{out}", "--size", "huge"], "MiB"),
        (["quantize", "{model}", "{out}", "--size", "1KB"], "at least"),
        (["quantize", "{model}", "{out}", "--bits", "1.0"], "at least"),
        (["quantize", "{model}", "{out}", "--bits", "4", "--format", "Q4_K"], "--format and --bits"),
        (["quantize", "{model}", "{out}", "--effort", "extreme"], "balanced"),
        (["quantize", "{model}", "{out}", "--max-kl", "0.1"], "balanced"),
        (["quantize", "{model}", "{out}", "--pin", "nothing=Q8_0"], "nothing"),
        (["quantize", "{model}", "{out}", "--threads", "0"], "1 or more"),
        (["quantize", "{model}", "{out}", "--effort", "fast", "--calibration", "t"], "balanced"),
        (["quantize", "{model}", "{out}", "--effort", "best", "--imatrix", "t"], "--imatrix takes the place"),
        (["quantize", "{model}", "{out}", "--imatrix", "{folder}/none.gguf"], r"none\.gguf"),
        (["imatrix", "{model}", "{out}", "--calibration", "{folder}/none.txt"], r"none\.txt.*hub:OWNER/NAME"),
        (["imatrix", "{model}", "{out}", "--tokens", "100"], "2 blocks or more, 1024 tokens"),
        (["plan", "{model}", "--points", "8"], "--frontier"),
        (["quantize", "{folder}/nothing-here", "{out}"], "nothing-here"),
        (["quantize", "some-org/never-heard-of-it", "{out}"], "never-heard-of-it"),
        (["inspect", "{folder}/nothing.gguf"], r"nothing\.gguf"),
        (["evaluate", "{model}", "--against", "{folder}/nothing"], "nothing"),
        (["generate", "{folder}/nothing", "hello"], "nothing"),
    ],
)
def test_bad_requests_end_with_status_2_and_say_what_to_do(tiny_llama, tmp_path, arguments, named):
    places = {"model": tiny_llama, "out": tmp_path / "out.gguf", "folder": tmp_path}
    done = run(*(a.format(**places) for a in arguments), status=2)

    assert done.stdout == ""
    assert re.search(named, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["--help"], ["quantize", "--help"], ["inspect", "{file}"]])
def test_start_up_is_quick(tiny_llama, tmp_path, command):
    """Counted in processor time, which other work on the machine doesn't lengthen much.

    Typer imports pydantic where that is installed, as it is for these tests: 0.1 s of the bound.
    """
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q8_0")
    arguments = [a.format(file=tmp_path / "out.gguf") for a in command]
    seconds = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-m", "fewbits", *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)

    assert min(seconds) < 0.6


def test_gguf_to_gguf_needs_neither_torch_nor_transformers(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "a.gguf", format="F32")
    code = (
        "import sys, fewbits\n"
        "fewbits.quantize(sys.argv[1], sys.argv[2], format='Q4_K')\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.strip() == "[]"
