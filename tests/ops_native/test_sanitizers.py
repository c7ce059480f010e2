"""The CPU kernels under the compiler's sanitizers: no access outside memory, no undefined step, no race of threads."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
SANITIZERS = {
    "address and undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}


@pytest.fixture(scope="module")
def hatch_build():
    """The build hook, which lies outside the package."""
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["hatch_build"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["hatch_build"]


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", SANITIZERS)
def test_every_kernel_runs_clean_and_bit_for_bit_equal_with_any_number_of_threads(hatch_build, tmp_path, name):
    """REL-15, SEC-35: all ops, ragged shapes, exact memory, shared pools, threads asleep and awake."""
    flags = (*SANITIZERS[name], "-O1", "-g", "-fno-omit-frame-pointer")
    library, driver = tmp_path / "kernels.so", tmp_path / "driver"
    problem = hatch_build.build(hatch_build.levels(only_this_machine=True), target=library, extra=flags)
    assert problem is None, problem
    include = f"-I{ROOT / 'src/quire/ops/cpu/csrc'}"
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", *flags, include, str(HERE / "driver.cpp"), str(library)]
    result = subprocess.run(
        [*command, f"-Wl,-rpath,{tmp_path}", "-o", str(driver), "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    result = _run([str(driver)])
    if "unexpected memory mapping" in result.stderr:  # the thread sanitizer wants addresses that are not randomised
        result = _run(["setarch", platform.machine(), "-R", str(driver)])
    assert result.returncode == 0, result.stderr[-8000:] + result.stdout
    assert "portable: " in result.stdout and "DIFFER" not in result.stdout


def _run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
