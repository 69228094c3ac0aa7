"""Artifacts run by their runtime and compared, here with transformers; what is wrong with one is found."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import fewbits
from fewbits.checkpoint.converted import VECTORS, read_description, read_vectors
from fewbits.checkpoint.source import open_checkpoint, open_stored
from fewbits.cli.main import app
from fewbits.errors import EvaluationError, RuntimeFailedError
from fewbits.evaluation.activations import TOKEN_ROUNDING, TokenRounding
from fewbits.evaluation.language_model import language_model_of, load_language_model
from fewbits.evaluation.runtime_distance import ACTIVATIONS, allowance
from fewbits.export import converters
from fewbits.export.registry import container_of, exporter_names
from fewbits.language_model.text_tokenizer import open_tokenizer
from fewbits.runtimes import registry
from fewbits.targets import registry as targets_registry
from fewbits.targets.target import Runtime, Target
from fewbits.verification import _converted, _logits, _untested
from npy_converter import NpyConverter

DOWN = "model.layers.1.mlp.down_proj"
SMALL = {"tokens": 40}


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A function that quantizes the tiny model once per format."""
    folder = tmp_path_factory.mktemp("made")

    def artifact(container, name):
        output = folder / name
        if not output.exists():
            fewbits.quantize(tiny_llama, output, to=container, format=name)
        return output

    return artifact


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("compressed-tensors", "INT4_G64_SYM"),
        ("compressed-tensors", "INT8_CHANNEL_SYM"),
        ("compressed-tensors", "NVFP4"),
        ("bitsandbytes", "NF4"),
        ("bitsandbytes", "BNB_INT8"),
    ],
)
def test_transformers_computes_what_we_mean(made, tiny_llama, sample_text, container, name):
    found = fewbits.verify(made(container, name), tiny_llama, text=sample_text, **SMALL)

    assert found.passed, found.describe()
    assert (found.container, found.runtime) == (container, "transformers")
    assert {"torch", "transformers"} < found.versions.keys()
    assert all(version in found.describe() for version in found.untested)
    assert found.tokens == 39
    assert 0 < found.kl_between < found.allowed.total
    # What it may differ by is far from what a wrong weight costs.
    if name not in (
        "BNB_INT8",
        "INT8_CHANNEL_SYM",
    ):  # there most of what is lost is the rounding of activations
        assert found.allowed.total < 0.5 * found.kl_weights
        assert found.kl_runtime == pytest.approx(found.kl_weights, rel=0.3)
    assert "passed" in found.describe()


def test_the_command_prints_one_object(made, tiny_llama, sample_text):
    command = [
        sys.executable, "-m", "fewbits", "verify", str(made("compressed-tensors", "INT4_G64_SYM")), "--against",
        str(tiny_llama), "--text", str(sample_text), "--tokens", "40", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"] is True
    assert said["kl_between"] < said["allowed"]["quantization"] + said["allowed"]["arithmetic"]


WRONG = """
import numpy as np
REQUIREMENTS = ("numpy",)
def logits(model, tokens):
    return np.load(model + "/wrong.npy")
"""


@pytest.fixture
def _runtime(tmp_path, monkeypatch):
    """A runtime for the test's converter that gives the logits in a file."""
    (tmp_path / "wrong_driver.py").write_text(WRONG)
    monkeypatch.setitem(converters._CONVERTERS, "npy", ("npy_converter", "NpyConverter"))
    monkeypatch.setitem(registry._DRIVERS, "wrong", str(tmp_path / "wrong_driver.py"))
    monkeypatch.setattr(
        "fewbits.verification.target_of",
        lambda name: Target(name, "", (Runtime("wrong", "", driver="wrong"),), ()),
    )
    registry.requirements_of.cache_clear()


def converted(tiny_llama, sample_text, tmp_path):
    """The model in the test's container, and the tokens that `SMALL` verifies it on."""
    folder = tmp_path / "out"
    fewbits.quantize(tiny_llama, folder, to="npy")
    text = sample_text.read_text(encoding="utf-8")
    return folder, open_tokenizer(open_checkpoint(tiny_llama)).encode(text, markup=False)[:40]


def our_logits(path, tiny_llama, ids, kv_cache=None):
    if path is None:
        return _logits(load_language_model(open_checkpoint(tiny_llama), "float"), ids)
    described = read_description(path)
    checkpoint = _converted(path, described, open_checkpoint(tiny_llama))
    formats = {name: tensor.format for name, tensor in described.tensors.items()}
    model = language_model_of(checkpoint, None, formats)
    return _logits(model.with_kv_cache(kv_cache) if kv_cache else model, ids)


@pytest.mark.usefixtures("_runtime")
def test_a_converted_folder_and_a_runtime_that_is_wrong(tiny_llama, sample_text, tmp_path):
    folder, ids = converted(tiny_llama, sample_text, tmp_path)
    ours, original = our_logits(folder, tiny_llama, ids), our_logits(None, tiny_llama, ids)
    noise = np.random.default_rng(0).standard_normal(ours.shape).astype(np.float32)

    def verdict(logits):
        np.save(folder / "wrong.npy", logits)
        return fewbits.verify(folder, tiny_llama, text=sample_text, **SMALL)

    right = verdict(ours)
    assert right.passed
    assert right.kl_between == 0
    assert right.container == "npy"
    padded = verdict(np.concatenate([ours, ours[:, :3]], axis=1))
    assert padded.passed
    # Noise of a twentieth of the quantization's effect passes, half of it doesn't, nor does the original itself.
    effect = float((ours - original).std())
    assert verdict(ours + noise * effect / 20).passed
    assert not verdict(ours + noise * effect / 2).passed
    assert not verdict(original).passed
    said = CliRunner().invoke(app, ["verify", str(folder), "--against", str(tiny_llama), "--tokens", "40"])
    assert (said.exit_code, "FAILED" in said.stdout) == (1, True)
    with pytest.raises(EvaluationError, match="fewer tokens"):
        verdict(ours[:, :100])
    with pytest.raises(EvaluationError, match="aren't finite"):
        verdict(ours * np.nan)


@pytest.mark.usefixtures("_runtime")
def test_what_rounded_inputs_cost_is_allowed_for_where_the_runtime_rounds_them(
    tiny_llama, sample_text, tmp_path, monkeypatch
):
    folder, ids = converted(tiny_llama, sample_text, tmp_path)
    exact = our_logits(folder, tiny_llama, ids)
    monkeypatch.setitem(TOKEN_ROUNDING, "INT4_G64_SYM", TokenRounding(127.0))
    np.save(folder / "wrong.npy", our_logits(folder, tiny_llama, ids))

    rounding = fewbits.verify(folder, tiny_llama, text=sample_text, **SMALL)
    assert rounding.passed
    assert rounding.kl_between == 0
    assert rounding.allowed.activations > 0
    assert "keys and values" in rounding.describe()

    driver = tmp_path / "wrong_driver.py"
    driver.write_text(driver.read_text() + "def rounds_activations(model): return False\n")
    np.save(folder / "wrong.npy", exact)
    plain = fewbits.verify(folder, tiny_llama, text=sample_text, **SMALL)
    assert plain.passed
    assert plain.kl_between == plain.allowed.activations == 0


@pytest.mark.usefixtures("_runtime")
def test_a_driver_that_names_a_cache_is_compared_with_that_cache(tiny_llama, sample_text, tmp_path):
    folder, ids = converted(tiny_llama, sample_text, tmp_path)
    np.save(folder / "wrong.npy", our_logits(folder, tiny_llama, ids, kv_cache="q4_0"))

    def verdict(kv_cache):
        (tmp_path / "wrong_driver.py").write_text(WRONG + f"def kv_cache(model): return {kv_cache!r}\n")
        return fewbits.verify(folder, tiny_llama, text=sample_text, **SMALL)

    right = verdict("q4_0")
    assert right.passed
    assert right.kl_between == 0
    assert right.allowed.activations > 0
    # The artifact says nothing of a cache: a runtime that keeps one in 4 bits and doesn't say so computes wrongly.
    for silent in ("", "float"):
        wrong = verdict(silent)
        assert not wrong.passed
        assert wrong.allowed.activations == 0


def test_a_quantized_cache_is_computed_as_its_runtime_does(tiny_llama, sample_text, tmp_path):
    folder = tmp_path / "out"
    fewbits.quantize(
        tiny_llama, folder, to="compressed-tensors", format="INT8_G32_SYM", kv_cache="fp8",
        effort="balanced", calibration=sample_text, fold=False,
    )  # fmt: skip
    found = fewbits.verify(folder, tiny_llama, text=sample_text, **SMALL)

    assert found.passed, found.describe()
    # Keys and values in 8 bits cost more than such weights, and both sides round them, if not all to the same codes:
    # compressed-tensors unpacks weights to bfloat16.
    assert found.kl_between < 0.5 * found.allowed.activations / ACTIVATIONS
    assert found.allowed.activations > found.allowed.quantization


@pytest.mark.usefixtures("_runtime")
def test_norms_that_a_container_does_not_tell_are_kept_beside_it(tiny_llama, tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "out"
    fewbits.quantize(tiny_llama, whole, to="npy")
    assert not (whole / VECTORS).exists()
    weights = NpyConverter.weights
    monkeypatch.setattr(
        NpyConverter,
        "weights",
        lambda self, path: {n: t for n, t in weights(self, path).items() if "norm" not in n},
    )
    fewbits.quantize(tiny_llama, folder, to="npy")
    kept = read_vectors(folder)
    assert len(kept) == 7
    for name, tensor in kept.items():
        assert np.array_equal(tensor.read(), np.load(folder / "weights" / f"{name}.npy"))
    assert np.array_equal(our_logits(folder, tiny_llama, [1, 2, 3]), our_logits(whole, tiny_llama, [1, 2, 3]))

    # Without them they are the original's, unless channels were rescaled.
    (folder / VECTORS).unlink()
    assert our_logits(folder, tiny_llama, [1, 2, 3]).shape == (3, 384)
    described = json.loads((folder / "fewbits.json").read_text())
    described["metadata"]["fewbits.folds.hash"] = "0" * 64
    (folder / "fewbits.json").write_text(json.dumps(described))
    with pytest.raises(EvaluationError, match="--no-fold"):
        our_logits(folder, tiny_llama, [1, 2, 3])


def test_the_allowance_is_a_small_share_and_what_was_measured():
    found = allowance(0.2, 1e-4, 0.0)
    assert (found.quantization, found.arithmetic, found.activations) == (0.002, 4e-4, 0.0)
    assert allowance(0.0, 0.0, 0.0).total == 1e-6


def test_other_versions_than_were_tested_are_told():
    assert _untested("gptqmodel", {"torch": "2.13.0+cpu", "gptqmodel": "7.6.0"}) == ()
    (told,) = _untested("gptqmodel", {"torch": "2.13.0+cpu", "gptqmodel": "9.0.0"})
    assert told == "gptqmodel 9.0.0, where fewbits was tested with 7.6.0"


def test_an_artifact_says_which_container_it_is(made, tiny_llama):
    names = {"gptq": "GPTQ4_G64_SYM", "awq": "AWQ4_G64", "mlx": "MLX4_G64", "modelopt": "MODELOPT_FP8"}
    names |= {"compressed-tensors": "INT4_G64_SYM", "bitsandbytes": "NF4"}
    for container, name in names.items():
        assert container_of(open_stored(made(container, name))) == container
    assert container_of(open_stored(tiny_llama)) is None
    assert set(exporter_names()) == {"gguf", "onnx", *names} <= set(targets_registry.target_names())


def test_what_cannot_be_verified_is_refused(made, tiny_llama, sample_text, tmp_path):
    with pytest.raises(EvaluationError, match="isn't quantized in a container"):
        fewbits.verify(tiny_llama, tiny_llama)
    gptq = made("gptq", "GPTQ4_G64_SYM")
    with pytest.raises(RuntimeFailedError, match=r"pip install torch==2\.13\.0 gptqmodel"):
        fewbits.verify(gptq, tiny_llama, text=sample_text, **SMALL)
    with pytest.raises(EvaluationError, match="no such runtime for gptq: found mlx-lm; allowed: gptqmodel"):
        fewbits.verify(gptq, tiny_llama, runtime="mlx-lm")
    with pytest.raises(RuntimeFailedError, match="no Python at"):
        fewbits.verify(gptq, tiny_llama, python=tmp_path / "none")
    nf4 = made("bitsandbytes", "NF4")
    with pytest.raises(
        EvaluationError, match=r"--tokens is out of range: found 1000; allowed: 8 or more, up to 256"
    ):
        fewbits.verify(nf4, tiny_llama, tokens=1000)
    (tmp_path / "short.txt").write_text("few words")
    with pytest.raises(EvaluationError, match="too short"):
        fewbits.verify(nf4, tiny_llama, text=tmp_path / "short.txt")
