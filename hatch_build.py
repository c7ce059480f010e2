"""Compiles the CPU kernels when quire is installed, and again by `python hatch_build.py` after a change to them.

Plain calls of the system's C++ compiler: the kernels are C functions that link neither Python nor torch, so there is
nothing to find. Where no compiler is there, or it fails, quire installs without them and runs on its reference ops.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, where hatchling need not be installed

    class BuildHookInterface(Generic[T]):  # type: ignore[no-redef]
        """Stands for hatchling's."""


HERE = Path(__file__).parent
SOURCES = HERE / "src/quire/ops/cpu/csrc"
TARGET = HERE / "src/quire/ops/cpu/kernels.so"
STAMP = TARGET.with_suffix(".so.stamp")
"""What the library beside it was made from; pip asks for the same build more than once."""
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
ONCE = ("ceilings.cpp", "runtime.cpp")
"""Sources that no instruction set is chosen for."""


class Level(NamedTuple):
    """An instruction set: its name, how the compiler is told of it, what the processor calls its parts."""

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]


def _avx512(name: str, *more: str) -> Level:
    features = ("avx512f", "avx512bw", "avx512dq", "avx512vl", *more)
    # GCC warns of its own AVX-512 header.
    flags = (*("-m" + feature.replace("_", "") for feature in features), "-mfma", "-mf16c", "-Wno-maybe-uninitialized")
    return Level(name, flags, frozenset(features))


X86_LEVELS = (
    Level("avx2", ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"})),
    _avx512("avx512"),
    _avx512("avx512vnni", "avx512_vnni"),
    _avx512("avx512bf16", "avx512_vnni", "avx512_bf16"),
)
PORTABLE = Level("portable", (), frozenset())


class KernelBuildHook(BuildHookInterface[Any]):
    """Puts the compiled kernels into the wheel, or beside the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are gathered; an editable install needs no more than this machine can run."""
        if self.target_name != "wheel":
            return
        problem = build_if_changed(levels(only_this_machine=version == "editable"))
        if problem:
            self.app.display_warning(f"quire's CPU kernels were not built ({problem}); it will run on its slow ops")
            return
        build_data["artifacts"].append(str(TARGET.relative_to(HERE)))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def levels(*, only_this_machine: bool) -> list[Level]:
    """The instruction sets to compile for."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return [PORTABLE]
    found = _processor_features() if only_this_machine else None
    return [PORTABLE, *(level for level in X86_LEVELS if found is None or level.features <= found)]


def _processor_features() -> frozenset[str] | None:
    """What Linux says the processor can do; None where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else frozenset(flags.partition(":")[2].split())


def build_if_changed(chosen: list[Level]) -> str | None:
    """`build`, unless the library is there and was made from these very sources for these instruction sets."""
    content = hashlib.sha256(" ".join(level.name for level in chosen).encode())
    for path in [Path(__file__), *sorted(SOURCES.iterdir())]:
        content.update(path.read_bytes())
    stamp = content.hexdigest()
    if TARGET.exists() and STAMP.exists() and STAMP.read_text() == stamp:
        return None
    STAMP.unlink(missing_ok=True)
    problem = build(chosen)
    if problem is None:
        STAMP.write_text(stamp)
    else:  # what is there was made from other sources
        TARGET.unlink(missing_ok=True)
    return problem


def build(chosen: list[Level], *, target: Path = TARGET, extra: tuple[str, ...] = ()) -> str | None:
    """Compile and link; returns why it could not be done, or None. The file is replaced when the new one is whole."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler found; install g++ or set CXX"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = list(_jobs(compiler, chosen, folder, extra))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            failures = [text for text in pool.map(_run, jobs) if text]
        objects = sorted(str(path) for path in folder.glob("*.o"))
        library = folder / TARGET.name
        link = [compiler, "-shared", *extra, "-o", str(library), *objects, "-lpthread"]
        failure = failures[0] if failures else _run(link)
        if failure:
            return failure
        part = target.with_suffix(".part")
        shutil.copyfile(library, part)
        os.replace(part, target)
    return None


def _jobs(compiler: str, chosen: list[Level], folder: Path, extra: tuple[str, ...]) -> list[list[str]]:
    defines = ["-DQUIRE_HAS_" + level.name.upper() for level in chosen]
    jobs = []
    for source in sorted(SOURCES.glob("*.cpp")):
        for level in [None] if source.name in ONCE else chosen:
            name = source.stem if level is None else f"{source.stem}.{level.name}"
            flags = defines if level is None else [*level.flags, f"-DQUIRE_ISA={level.name}"]
            jobs.append([compiler, *COMMON, *extra, *flags, "-c", str(source), "-o", str(folder / f"{name}.o")])
    return jobs


def _run(command: list[str]) -> str | None:
    """Run a compiler; returns the first error it prints, or None."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if result.returncode == 0:
        return None
    lines = result.stderr.splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "the compiler failed silently")


if __name__ == "__main__":
    problem = build_if_changed(levels(only_this_machine="--all" not in sys.argv))
    if problem:
        sys.exit(problem)
    print(TARGET)
