"""The house around the package: commands, documents, licence, and what the wheel carries."""

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from quire.base.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "quire"
TARGETS = {"serve", "test", "test-all", "check", "fmt", "bench", "test-gpu", "docs"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def write_docs():
    """The generator of the documents' tables, as a module; it finds the files beside it as it does when it is run."""
    sys.path.insert(0, str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_generated_parts_of_a_document_are_current(write_docs, path):
    """S45, S125: the published tables of models and settings are those of the code; `make docs` refreshes them."""
    text = path.read_text(encoding="utf-8")
    assert write_docs.refresh(text) == text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_metric_is_documented():
    source = (SOURCE / "server" / "metrics.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(quire:\w+)"', source))
    names |= {f"quire:{name}" for name in re.findall(r'_(?:counter|histogram|twin)\("(\w+)"', source)}
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert len(names) > 20
    assert sorted(name for name in names if not re.search(rf"`{name}\b", documented)) == []


def test_every_command_of_the_readme_exists():
    from quire.cli.main import COMMANDS

    named = set(re.findall(r"`quire ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == set(COMMANDS)


@pytest.mark.slow
def test_examples_of_plugins_run_as_printed():
    """S87: a sampler and a scheduling policy are added without a fork, the way the document shows."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    examples = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "my_package" not in block]
    assert len(examples) == 2
    checks = (
        "from quire.scheduler.budget import SchedulerLimits\nfrom quire.scheduler.queues import make_policy\n"
        "make_policy(SchedulerLimits(max_num_seqs=1, max_num_batched_tokens=1, max_prefill_tokens_mixed=1,"
        " max_model_len=1, policy='shortest-prompt'))\n"
        "print(Forbid([1]).apply(torch.zeros(1, 3), []).tolist())\n"
    )
    code = "\n".join([*examples, checks])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[0.0, -inf, 0.0]]\n"


def make(*words, path=None, **variables):
    environment = {**os.environ, **({"PATH": path} if path else {})}
    environment.pop("MAKEFLAGS", None)
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = [shutil.which("make"), *words, *settings]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_fresh_machine_makes_the_environment_installs_and_serves(tmp_path):
    """S86: one command from a clone to a served model."""
    planned = make("-n", "serve", VENV=tmp_path / "venv").stdout
    steps = [planned.index("-m venv"), planned.index("pip install"), planned.index("quire serve")]
    assert steps == sorted(steps)
    assert "-c constraints.txt" in planned
    assert "[dev]" not in planned, "serving must not wait for the tools of development"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_sets_up_by_itself(tmp_path, target):
    planned = make("-n", target, VENV=tmp_path / "venv")
    assert planned.returncode == 0, planned.stderr
    assert "-m venv" in planned.stdout


@pytest.mark.parametrize("target", ["serve", "test"])
def test_a_machine_without_python_is_told_so(tmp_path, target):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sed", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    done = make(target, path=str(tools), VENV=tmp_path / "venv")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr


def test_an_interpreter_that_is_too_old_is_passed_over(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/bash\n[[ $1 == --version ]] && echo Python 3.8.0\nexit 1\n")
    old.chmod(0o755)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sed", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    shutil.copy(old, tools / "python3")
    done = make("serve", path=str(tools), VENV=tmp_path / "venv")
    assert "found: Python 3.8.0" in done.stderr


def test_ci_calls_make_targets_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text(encoding="utf-8")
    steps = re.search(r"STEPS=\((.*?)\)", text)[1].split()
    assert steps == ["check", "test-all"]
    assert set(steps) <= TARGETS
    assert not re.search(r"^\s*(pip|pytest|python|ruff|mypy)\b", text, re.MULTILINE)


def test_ci_fails_when_a_step_fails_and_still_runs_the_others(tmp_path):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text("check:\n\t@echo ran check; exit 1\ntest-all:\n\t@echo ran test-all\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert "ran check" in done.stdout
    assert "ran test-all" in done.stdout
    assert done.stdout.strip().endswith("failed: check")


def test_the_licence_is_an_open_one_and_only_our_own_models_ship():
    """S1: an engine, not a model."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    weights = {path.parent.name for path in ROOT.rglob("*.safetensors") if not {".venv", ".git"} & set(path.parts)}
    assert weights <= {"quire-demo", "quire-demo-draft"}
    assert sum(path.stat().st_size for path in (SOURCE / "assets").rglob("*.safetensors")) < 16 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", folder, ROOT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("quire-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_carries_the_package_its_models_and_its_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {p.relative_to(SOURCE.parent).as_posix() for p in SOURCE.rglob("*.py")}
    wanted |= {p.relative_to(SOURCE.parent).as_posix() for p in (SOURCE / "assets").rglob("*") if p.is_file()}
    assert sorted(wanted - names) == []
    assert "quire/py.typed" in names
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        assert "quire/ops/cpu/kernels.so" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/")) or name.endswith(".pyc")]


@pytest.mark.slow
def test_the_wheel_works_away_from_its_sources(wheel, tmp_path):
    """S86: what is installed runs without the repository."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import quire; print(quire.__file__)").startswith(str(site))
    report = json.loads(python("-m", "quire.cli.main", "check", "quire-demo", "--json"))
    assert report["verdict"] == "supported"
    assert report["path"].startswith(str(site))
    assert python(
        "-m", "quire.cli.main", "complete", "Once upon a time", "--max-tokens", "8", "--temperature", "0"
    ).strip()


def test_the_trade_of_the_presets_is_documented_with_its_measurement():
    """S81: both presets, with the numbers they set and the figures they gave."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition("## Presets")[2]
    for name, values in PRESETS.items():
        assert re.search(rf"^\| {name} \|.*\d+ ms", text, re.MULTILINE), name
        for number in values.values():
            assert f"{number:,}" in text
