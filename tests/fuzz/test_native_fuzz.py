"""The fuzzers of native/fuzz, for some seconds each. They are built once, outside the repository."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUZZERS = ("matrix", "model", "sampler")
SECONDS = float(os.environ.get("FEWBITS_FUZZ_SECONDS", "9")) / len(FUZZERS)


def _run(*command, **options):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def built():
    """The folder of the fuzzers, in which what hasn't changed isn't compiled again."""
    if not shutil.which("cmake") or not (shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("building needs CMake and a C++ compiler")
    place = hashlib.sha256(f"{ROOT} {os.getuid()} {os.environ.get('CXX')}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"fewbits-fuzz-{place}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid()
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run("cmake", "-S", ROOT, "-B", folder, *ninja, "-DCMAKE_BUILD_TYPE=Release", "-DFEWBITS_FUZZ=ON")
    _run("cmake", "--build", folder, "--parallel", "2")
    return folder / "native" / "fuzz"


@pytest.mark.timeout(3600 + SECONDS)  # building takes minutes, beside other work many
@pytest.mark.parametrize("name", FUZZERS)
def test_arbitrary_bytes_harm_nothing(built, name, tmp_path):
    said = _run(
        built / f"fuzz_{name}", f"-max_total_time={SECONDS}", "-seed=1", f"-artifact_prefix={tmp_path}/"
    )

    runs = int(said.split("Done ")[1].split()[0])
    assert runs > 20


def test_what_goes_wrong_is_seen_and_its_input_kept(tmp_path):
    """The sanitizers are there: a fuzzer of a planted fault ends with a failure."""
    source = tmp_path / "planted.cpp"
    source.write_text(
        "#include <cstdint>\n#include <cstddef>\n#include <memory>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {\n'
        "    const auto held = std::make_unique<std::uint8_t[]>(size);\n"
        "    volatile std::uint8_t read = held[data[0] == 7 ? size : 0];\n"
        "    (void)read;\n    return 0;\n}\n"
    )
    driver = ROOT / "native" / "fuzz" / "random_inputs.cpp"
    program = tmp_path / "planted"
    if not shutil.which("g++"):
        pytest.skip("this fault is compiled by g++")
    _run("g++", "-std=c++20", "-g1", "-fsanitize=address", source, driver, "-o", program)

    ran = subprocess.run(
        [program, "-max_total_time=20", f"-artifact_prefix={tmp_path}/"], capture_output=True, text=True
    )

    assert ran.returncode != 0
    assert "heap-buffer-overflow" in ran.stderr
    again = subprocess.run([program, tmp_path / "crash"], capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode != 0
    assert (tmp_path / "crash").read_bytes()[0] == 7
