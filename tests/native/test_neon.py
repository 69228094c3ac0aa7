"""The matrix products of NEON, cross-compiled and run by an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ISAS = {"neon": [], "neon_dotprod": ["-march=armv8.2-a+dotprod"]}


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
)
def test_neon_multiplies_as_the_portable_kernels_do(tmp_path):
    flags = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{NATIVE}"]
    objects = []
    for isa, extra in ISAS.items():
        objects.append(tmp_path / f"{isa}.o")
        source = NATIVE / isa / "matmul.cpp"
        subprocess.run([COMPILER, *flags, *extra, "-c", source, "-o", objects[-1]], check=True)
    sources = [NATIVE / "engine" / name for name in ("packed_matrix.cpp", "block_formats.cpp")]
    sources += [NATIVE / "portable" / "matmul.cpp", Path(__file__).with_name("compare_matmul.cpp")]
    program = tmp_path / "compare"
    subprocess.run([COMPILER, *flags, "-static", *sources, *objects, "-o", program], check=True)

    ran = subprocess.run([EMULATOR, "-cpu", "max", program], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stdout
    assert len(ran.stdout.split()) == 16, ran.stdout
