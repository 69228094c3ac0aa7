"""Instruction sets against the portable kernels: NEON, cross-compiled and run by an emulator, and this processor's."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
    f"-I{NATIVE}",
]
FLAGS += [f"-I{NATIVE / 'kernels'}"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [f"-mavx512{part}" for part in ("f", "vl", "dq", "bw", "vnni")]
AVX512 += ["-mprefer-vector-width=512", "-Wno-maybe-uninitialized"]  # in GCC 12's own headers
X86 = {"portable": [], "avx2": AVX2, "avx512vnni": [*AVX2, *AVX512]}

needs_emulator = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def compiled(folder, compiler, sources):
    """A program of sources, each with flags of its own."""
    objects = []
    for source, flags in sources.items():
        objects.append(folder / f"{len(objects)}.o")
        subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", objects[-1]], check=True)
    program = folder / "compare"
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return program


def said(*command):
    """What a program prints, word by word."""
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.split()


@needs_emulator
def test_neon_multiplies_as_the_portable_kernels_do(tmp_path):
    names = ("engine/packed_matrix.cpp", "engine/block_formats.cpp", "fetch_ahead.cpp")
    sources = {NATIVE / name: [] for name in names}
    sources |= {NATIVE / isa / "matmul.cpp": [] for isa in ("portable", "neon")}
    sources |= {NATIVE / "neon_dotprod" / "matmul.cpp": ["-march=armv8.2-a+dotprod"]}
    program = compiled(tmp_path, COMPILER, sources | {HERE / "compare_matmul.cpp": []})

    assert len(said(EMULATOR, "-cpu", "max", program)) == 16


@needs_emulator
def test_neon_attends_as_the_portable_kernels_do(tmp_path):
    sources = {NATIVE / isa / "transformer.cpp": [] for isa in ("portable", "neon")}
    program = compiled(tmp_path, COMPILER, sources | {HERE / "compare_transformer.cpp": ["-O1"]})

    words = said(EMULATOR, "-cpu", "max", program)
    assert words[1:3] == ["checks", "of"]
    assert int(words[0]) > 200
    assert words[3] == "1"


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("g++"), reason="needs an x86-64 processor and g++"
)
def test_this_processor_attends_as_the_portable_kernels_do(tmp_path):
    sources = {NATIVE / isa / "transformer.cpp": flags for isa, flags in X86.items()}
    program = compiled(tmp_path, "g++", sources | {HERE / "compare_transformer.cpp": ["-O1"]})

    assert int(said(program)[0]) > 200
