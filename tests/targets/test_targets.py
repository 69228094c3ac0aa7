"""Facts about targets: whole, with sources, and in step with drivers, formats and the rows that prove them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewbits.cli.main import app
from fewbits.export.converters import converter_names
from fewbits.export.registry import exporter_names, get_exporter
from fewbits.inventory import describe, targets
from fewbits.runtimes.drive import package_of
from fewbits.runtimes.registry import requirements_of, runtime_names
from fewbits.targets.hardware import HARDWARE
from fewbits.targets.registry import target_names, target_of
from fewbits.targets.target import Scheme

ROWS = Path(__file__).parents[2] / "tests_runtimes"
TARGETS = [target_of(name) for name in target_names()]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.container)
def test_every_fact_has_a_public_source(target):
    assert target.runtimes
    assert target.schemes
    for fact in (*target.runtimes, *target.schemes):
        assert fact.sources
        assert all(re.match(r"https://[\w.-]+/\S+$", source) for source in fact.sources)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.container)
def test_schemes_speak_of_formats_that_the_container_holds(target):
    """A scheme's names are grammars such as INT{4|8}_G{32|64|128}[_SYM]."""
    formats = get_exporter(target.container).formats

    found = set()
    for scheme in target.schemes:
        for grammar in scheme.formats:
            held = {name for name in formats if replace(scheme, formats=(grammar,)).covers(name)}
            assert held, grammar
            found |= held
    assert found == set(formats)


def test_grammars_mean_what_they_say():
    def covered(grammar, *names):
        scheme = Scheme("", (grammar,), "")
        return [name for name in names if scheme.covers(name)]

    assert covered("INT{2..4}_G{16|32}[_SYM]", "INT3_G16", "INT4_G32_SYM", "INT5_G16", "INT3_G1") == [
        "INT3_G16", "INT4_G32_SYM",
    ]  # fmt: skip
    assert covered("A{2|3}_…", "A2_", "A3_X_Y", "A4_X") == ["A2_", "A3_X_Y"]
    assert covered("A_… without _SYM", "A_B", "A_B_SYM", "A_SYM_B") == ["A_B", "A_SYM_B"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.container)
def test_hardware_is_known_and_what_is_only_unpacked_has_none(target):
    for scheme in target.schemes:
        assert set(scheme.hardware) <= set(HARDWARE)
        assert len(set(scheme.hardware)) == len(scheme.hardware)
        assert bool(scheme.hardware) != (
            "transformers alone" in scheme.described and "tried" not in scheme.where
        )
        if scheme.kernel:
            assert set(scheme.kernel.hardware) & set(scheme.hardware)
            assert scheme.kernel.source in scheme.sources
    assert target.computes(get_exporter(target.container).default_format, target.hardware[0])


@pytest.mark.parametrize(
    ("container", "name", "computed", "not_computed"),
    [
        (
            "compressed-tensors",
            "INT8_CHANNEL_SYM",
            ["ampere", "hopper", "x86-cpu", "tpu"],
            ["blackwell", "apple"],
        ),
        ("compressed-tensors", "NVFP4_A4", ["blackwell"], ["hopper", "ada"]),
        ("compressed-tensors", "INT4_G64_SYM", ["turing", "x86-cpu"], ["tpu"]),
        ("compressed-tensors", "INT8_G64_SYM", ["turing"], ["x86-cpu"]),
        ("compressed-tensors", "INT3_G64", [], list(HARDWARE)),
        ("openvino", "OV4_G64", ["x86-cpu"], ["intel-npu"]),
        ("openvino", "OV4_G128_SYM", ["x86-cpu", "intel-npu"], ["ampere"]),
        ("modelopt", "MODELOPT_FP8", ["ada"], ["ampere"]),
    ],
)
def test_what_computes_what(container, name, computed, not_computed):
    target = target_of(container)
    assert all(target.computes(name, hardware) for hardware in computed)
    assert not any(target.computes(name, hardware) for hardware in not_computed)


def test_every_container_has_facts():
    assert {*exporter_names(), *converter_names()} <= set(target_names())


def test_rows_have_the_packages_that_their_driver_was_tested_with():
    named = {r.row: r for target in TARGETS for r in target.runtimes if r.row}
    assert set(named) == {path.parent.name for path in ROWS.glob("*/formats.txt")}
    for row, runtime in named.items():
        if not runtime.driver:  # it runs elsewhere
            continue
        assert runtime.driver in runtime_names()
        listed = (ROWS / row / "requirements.txt").read_text().splitlines()
        listed += [re.sub(r"\[.*\]", "", line) for line in listed]  # a row may need more extras of a package
        for requirement in requirements_of(runtime.driver):
            if package_of(requirement) in map(package_of, listed):
                assert requirement in listed, (row, requirement)
        shared = {package_of(r) for r in requirements_of(runtime.driver)} & {package_of(r) for r in listed}
        assert len(shared) >= 1
        for line in (ROWS / row / "formats.txt").read_text().splitlines():
            container, name, *how = line.split()
            assert row in [r.row for r in target_of(container).runtimes]
            assert name in get_exporter(container).formats or "unquantized" in how


def test_the_report_says_what_is_here():
    reports = {report.name: report for report in targets()}

    transformers, vllm = reports["compressed-tensors"].runtimes
    assert not vllm.ready
    assert transformers.ready
    assert transformers.installed["torch"]
    gptqmodel, _ = reports["gptq"].runtimes
    assert not gptqmodel.ready
    assert gptqmodel.installed["gptqmodel"] is None
    assert gptqmodel.command.endswith("pip install " + " ".join(requirements_of("gptqmodel")))
    assert gptqmodel.command in describe(tuple(reports.values()))
    assert all(report.writable for report in reports.values() if not report.extra)
    assert reports["executorch"].extra == "executorch"


def test_the_command_prints_one_object():
    done = CliRunner().invoke(app, ["targets", "--json"])

    assert done.exit_code == 0
    names = [entry["name"] for entry in json.loads(done.stdout)["targets"]]
    assert names == [*exporter_names(), *converter_names()]
    assert "runs in vLLM" in CliRunner().invoke(app, ["targets"]).stdout


def test_the_command_shows_what_some_hardware_computes():
    done = CliRunner().invoke(app, ["targets", "--hardware", "apple", "--json"])

    found = {entry["name"]: entry for entry in json.loads(done.stdout)["targets"]}
    assert set(found) == {"gguf", "mlx", "bitsandbytes", "coreml"}
    assert found["bitsandbytes"]["formats"] == ["NF4"]
    assert [scheme["title"] for scheme in found["bitsandbytes"]["target"]["schemes"]] == ["W4A16 NF4"]
    refused = CliRunner().invoke(app, ["targets", "--hardware", "abacus"])
    assert refused.exit_code == 2
    assert "turing, ampere" in refused.stderr
