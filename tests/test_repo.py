"""The house rules of docs/architecture.md, read from the sources: who imports whom, how big things get, what is banned.

The numbers are there to make us think: raise one with a reason rather than game it.
"""

import ast
import dataclasses
import re
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "quire"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 150
MAX_MEDIAN_LINES = 10
MAX_PARAMETERS = 7
SHAPED_BY_OTHERS = {"LLM.chat"}
"""Functions whose parameters are vLLM's, so that code written for it moves; all but two are given by name."""
MAX_METHODS = 15
MAX_FLAGS = 46
"""Engine and server together; one more than planned, for the bound on queued tokens (REL-8)."""
MAX_ENVIRONMENT_VARIABLES = 4

MAY_IMPORT = {
    "base": set(),
    "ops": set(),
    "attention": {"ops"},
    "quant": {"ops"},
    "layers": {"attention", "quant"},
    "models": {"layers"},
    "runner": {"models"},
    "cache": set(),
    "scheduler": {"cache"},
    "text": set(),
    "protocol": set(),
    "engine": {"scheduler", "runner", "text"},
    "server": {"engine", "protocol", "text"},
    "fleet": {"protocol", "scheduler"},
    "integrations": {"fleet", "engine"},
    "bench": {"engine"},
    "cli": {"server", "fleet", "engine", "bench", "conformance", "integrations"},
    **{name: set() for name in ("conformance", "web", "assets")},
}
"""Downward edges; what a package may import, it may also import through: the rule is the closure. Everything: base."""
TORCH_FREE = {"base", "cache", "scheduler", "text", "protocol", "server", "fleet", "conformance", "cli"}
SEAMS = {
    "ops/dispatch.py": "chooses the implementation of an op by device",
    "attention/__init__.py": "chooses the attention backend",
    "runner/device.py": "chooses the device",
    "engine/client.py": "an engine in this process loads torch; one in its own process must not",
    "engine/worker.py": "the engine's own process; reports a failed import like any failed start",
    "models/loader.py": "the adapter needs transformers, an optional dependency",
    "text/tokenizer.py": "the slow tokenizer needs sentencepiece, an optional dependency",
}
"""Files outside cli/ that may import ours inside a function, and why."""
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "multiprocessing"}
"""Deserialisers that run code; multiprocessing sends pickles over its pipes and queues."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One file of the package, parsed."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(SOURCE).as_posix()

    @property
    def module(self) -> str:
        parts = ("quire", *self.path.relative_to(SOURCE).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """First folder below quire, or "" for the top package."""
        return self.name.split("/")[0] if "/" in self.name else ""


@cache
def sources() -> list[Source]:
    files = sorted(SOURCE.rglob("*.py"))
    return [Source(path, text := path.read_text(encoding="utf-8"), ast.parse(text)) for path in files]


@cache
def modules() -> set[str]:
    return {source.module for source in sources()}


@cache
def functions(source: Source):
    """Every function with its dotted name and the class it is a method of, if any."""

    def walk(node, prefix, owner):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child, owner
                yield from walk(child, f"{prefix}{child.name}.", None)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", child)
            else:
                yield from walk(child, prefix, owner)

    return list(walk(source.tree, "", None))


@cache
def imports(source: Source):
    """(imported module or quire submodule, node, whether inside a function, whether only for the type checker)."""

    def walk(node, inside, typing_only):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child, inside, typing_only
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{source.name}:{child.lineno}: relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in modules() else child.module), child, inside, typing_only
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                is_guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, inside or is_function, typing_only or is_guard)

    return list(walk(source.tree, False, False))


def closure(package: str) -> set[str]:
    reached: set[str] = set()
    todo = [package]
    while todo:
        current = todo.pop()
        if current not in reached:
            reached.add(current)
            todo += MAY_IMPORT[current]
    return reached | {"base"}


def report(problems: list[str]) -> None:
    assert not problems, "\n  " + "\n  ".join(problems)


def uses_of_top(source: Source) -> set[str]:
    attributes = [node for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "quire"}


def test_packages_import_only_downwards():
    """S9: the engine needs nothing of the layers above it."""
    problems = []
    for source in sources():
        if source.package == "":
            continue  # the top package is lazy and names everything
        allowed = closure(source.package)
        for name, node, _, _ in imports(source):
            if name == "quire":
                names = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) else uses_of_top(source)
                if names != {"__version__"}:
                    problems.append(f"{source.name}:{node.lineno} imports from the top package")
            elif name.startswith("quire.") and name.split(".")[1] not in allowed:
                problems.append(f"{source.name}:{node.lineno} imports {name}")
    report(problems)


def test_base_imports_only_the_standard_library():
    allowed = sys.stdlib_module_names | {"quire"}
    report(
        [
            f"{source.name}:{node.lineno} imports {name}"
            for source in sources()
            if source.package == "base"
            for name, node, _, _ in imports(source)
            if name.split(".")[0] not in allowed
        ]
    )


def test_modules_import_each_other_without_a_cycle():
    graph = {
        source.module: {name for name, _, _, typing_only in imports(source) if name in modules() and not typing_only}
        for source in sources()
        if source.package
    }
    state: dict[str, str] = {}
    problems: list[str] = []

    def visit(module: str, trail: tuple[str, ...]) -> None:
        state[module] = "open"
        for target in sorted(graph.get(module, ())):
            if state.get(target) == "open":
                problems.append(" -> ".join((*trail[trail.index(target) :], target)))
            elif target not in state:
                visit(target, (*trail, target))
        state[module] = "done"

    for module in graph:
        if module not in state:
            visit(module, (module,))
    report(problems)


def test_torch_free_packages_never_name_torch():
    report(
        [
            f"{source.name}:{node.lineno} imports {name}"
            for source in sources()
            if source.package in TORCH_FREE
            for name, node, _, _ in imports(source)
            if name.split(".")[0] == "torch"
        ]
    )


def test_our_modules_are_imported_inside_functions_only_at_seams():
    bound = [source for source in sources() if source.package not in ("", "cli") and source.name not in SEAMS]
    found = [(s, n, name) for s in bound for name, n, inside, _ in imports(s) if inside and name.startswith("quire")]
    report([f"{source.name}:{node.lineno} imports {name} inside a function" for source, node, name in found])


LIGHT = ["quire", "quire.cli.main"]
TORCH_FREE_ENTRIES = [
    *("quire.base.config", "quire.cache.manager", "quire.scheduler.scheduler", "quire.text.tokenizer"),
    *("quire.protocol.chat", "quire.models.families", "quire.models.inspect", "quire.models.check"),
    *("quire.engine.resolve", "quire.engine.async_engine", "quire.server.app", "quire.server.serve"),
    *("quire.cli.serve", "quire.cli.check", "quire.bench.serving", "quire.cli.conformance"),
]


def loaded_after(modules: list[str], unwanted: set[str]) -> str:
    """Import modules one after the other in a fresh process; what each was the first to load of `unwanted`."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        f"    seen = {unwanted!r} & set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        f"    if new := {unwanted!r} & set(sys.modules) - seen: print(name, 'loads', *sorted(new))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_server_scheduler_and_commands_leave_torch_and_transformers_out():
    """A server process, a check of a checkpoint and a command line start without the libraries of the device tower."""
    assert loaded_after(TORCH_FREE_ENTRIES, {"torch", "transformers"}) == ""


def test_the_top_package_and_the_command_line_load_nothing_heavy():
    heavy = {"torch", "numpy", "fastapi", "starlette", "uvicorn", "httpx", "jinja2", "tokenizers", "yaml", "msgspec"}
    assert loaded_after(LIGHT, heavy) == ""


def test_files_stay_short():
    files = [path for folder in ("src", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    report(
        [
            f"{p.relative_to(ROOT)}: {n} lines, at most {MAX_FILE_LINES}"
            for p, n in lengths.items()
            if n > MAX_FILE_LINES
        ]
    )


def _is_kernel_file(source: Source) -> bool:
    return source.name.startswith(("ops/triton/", "ops/cpu/", "attention/triton"))


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out: explaining more should not cost."""
    doc = function.body[0]
    has_doc = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    return function.end_lineno - function.lineno + 1 - ((doc.end_lineno - doc.lineno + 1) if has_doc else 0)


def test_functions_stay_short():
    problems, lengths = [], []
    for source in sources():
        limit = MAX_KERNEL_LINES if _is_kernel_file(source) else MAX_FUNCTION_LINES
        for name, function, _ in functions(source):
            lengths.append(_length(function))
            if lengths[-1] > limit:
                problems.append(f"{source.name}: {name} has {lengths[-1]} lines, at most {limit}")
    if statistics.median(lengths) > MAX_MEDIAN_LINES:
        problems.append(f"the median function has {statistics.median(lengths)} lines, at most {MAX_MEDIAN_LINES}")
    report(problems)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, owner: ast.ClassDef | None) -> list[ast.arg]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    return named[1:] if owner is not None and not static else named


def test_functions_take_few_parameters():
    report(
        [
            f"{source.name}: {name} takes {count} parameters, at most {MAX_PARAMETERS}"
            for source in sources()
            if not _is_kernel_file(source)
            for name, function, owner in functions(source)
            if (count := len(_parameters(function, owner))) > MAX_PARAMETERS and name not in SHAPED_BY_OTHERS
        ]
    )


def test_annotations_are_complete():
    problems = []
    for source in sources():
        for name, function, owner in functions(source):
            missing = [p.arg for p in _parameters(function, owner) if p.annotation is None]
            if function.returns is None:
                missing.append("return")
            if missing and not _is_kernel_file(source):
                problems.append(f"{source.name}:{function.lineno} {name}: {', '.join(missing)}")
    report(problems)


def _classes(source: Source) -> list[ast.ClassDef]:
    return [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]  # nested ones included


def test_classes_stay_small():
    problems = []
    for source in sources():
        for cls in _classes(source):
            methods = [node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            count = sum(1 for name in methods if not name.startswith("__"))
            if count > MAX_METHODS:
                problems.append(f"{source.name}: {cls.name} has {count} methods, at most {MAX_METHODS}")
    report(problems)


def test_inheritance_is_shallow():
    """Counted in classes of ours; the error tree is drawn in its module and exempt."""
    bases = {
        cls.name: [ast.unparse(base).split("[")[0].split(".")[-1] for base in cls.bases]
        for source in sources()
        for cls in _classes(source)
    }

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases[name] if base in bases and base != name), default=0)

    problems = []
    for source in sources():
        limit = 3 if source.package in ("models", "layers") else 2
        for cls in _classes(source):
            if source.name != "base/errors.py" and not cls.name.endswith("Error") and depth(cls.name) > limit:
                problems.append(f"{source.name}: {cls.name} inherits {depth(cls.name)} deep, at most {limit}")
    report(problems)


def test_every_public_name_has_a_docstring():
    problems = []
    for source in sources():
        if not ast.get_docstring(source.tree):
            problems.append(f"{source.name}: module")
        problems += [
            f"{source.name}: class {cls.name}"
            for cls in source.tree.body
            if isinstance(cls, ast.ClassDef) and not cls.name.startswith("_") and not ast.get_docstring(cls)
        ]
        for name, function, owner in functions(source):
            is_nested = owner is None and "." in name
            is_private = any(part.startswith("_") for part in name.split("."))
            is_overload = any("overload" in ast.unparse(decorator) for decorator in function.decorator_list)
            if not (is_nested or is_private or is_overload or ast.get_docstring(function)):
                problems.append(f"{source.name}: {name}")
    report(problems)


def test_nothing_is_global_and_names_say_what_things_are():
    problems = []
    for source in sources():
        if re.search(r"(^|[/_])(utils?|helpers?|misc)\.py$", source.name):
            problems.append(f"{source.name}: a module named after nothing in particular")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Global):
                problems.append(f"{source.name}:{node.lineno}: global {', '.join(node.names)}")
            if isinstance(node, ast.ClassDef) and re.search(r"^Base[A-Z]|(Impl|Mixin|Utils?|Helper)$", node.name):
                problems.append(f"{source.name}:{node.lineno}: class {node.name}")
            if isinstance(node, ast.ClassDef) and node.name.endswith("Manager") and node.name != "KVCacheManager":
                problems.append(f"{source.name}:{node.lineno}: class {node.name}")
    report(problems)


def test_no_two_functions_have_the_same_body():
    seen = defaultdict(list)
    for source in sources():
        for name, function, _ in functions(source):
            body = [n for n in function.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            if _length(function) >= 6 and len(body) >= 2:
                seen[ast.dump(ast.Module(body=body, type_ignores=[]))].append(f"{source.name}: {name}")
    report([" = ".join(names) for names in seen.values() if len(names) > 1])


def test_flags_stay_few():
    from quire.cli.flags import ENGINE_PARTS, SERVER_PARTS, flag_specs

    assert sum(spec.is_flag for spec in flag_specs(ENGINE_PARTS | SERVER_PARTS).values()) <= MAX_FLAGS


def test_environment_variables_stay_few():
    """Every name that starts with QUIRE_, and every literal name read from the environment."""
    names = set()
    for source in sources():
        names |= set(re.findall(r"\bQUIRE_[A-Z_]+\b", source.text))
        names |= set(re.findall(r"environ(?:\.get\(|\[)\s*[\"'](\w+)", source.text))
        names |= set(re.findall(r"getenv\(\s*[\"'](\w+)", source.text))
    assert len(names) <= MAX_ENVIRONMENT_VARIABLES, sorted(names)


def test_dependencies_are_ranges():
    """The package asks for ranges; only the file for fresh machines settles a version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    assert [one for group in groups for one in group if re.search(r"==|~=|===", one)] == []
    assert len(project["dependencies"]) <= 13  # grammars and forms are read by libraries


def _keyword(call: ast.Call, name: str):
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_nothing_reachable_can_run_code_from_data():
    """SEC-1: no deserialiser that runs code, no eval or exec, no unsafe torch, numpy or YAML loading."""
    problems = []
    for source in sources():
        for name, node, _, _ in imports(source):
            if name.split(".")[0] in FORBIDDEN_MODULES:
                problems.append(f"{source.name}:{node.lineno} imports {name}")
        for call in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            where = f"{source.name}:{call.lineno} calls {called}"
            if called in ("eval", "exec", "__import__", "compile", "builtins.eval", "builtins.exec"):
                problems.append(where)
            elif called == "torch.load" and _keyword(call, "weights_only") != "True":
                problems.append(f"{where} without weights_only=True")
            elif called.endswith(".load") and _keyword(call, "allow_pickle") not in (None, "False"):
                problems.append(f"{where} with allow_pickle")
            elif called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
                problems.append(where)
            elif _keyword(call, "shell") not in (None, "False"):
                problems.append(f"{where} with a shell")
    report(problems)


def test_remote_code_is_never_trusted():
    """SEC-5: `trust_remote_code` is nowhere a name, a key or an argument, unless it is the literal False."""
    problems = []
    for source in sources():
        for node in ast.walk(source.tree):
            pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
            named = [ast.unparse(value) for key, value in pairs if key and "trust_remote_code" in ast.unparse(key)]
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                named.append(ast.unparse(node.value))
            if "trust_remote_code" in [getattr(node, name, None) for name in ("id", "attr")]:
                named.append("a variable")
            if isinstance(node, ast.arg) and node.arg == "trust_remote_code":
                named.append("a parameter")
            problems += [f"{source.name}: trust_remote_code is {value}" for value in named if value != "False"]
    report(problems)


def test_tracked_files_name_no_machine_and_no_registry():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = [r"py" r"pi\.org", r"pythonhosted" r"\.org", r"download\.pytorch" r"\.org"]
    paths = ["/wo" r"rk/(main|shared)", "/ro" r"ot/", "/op" r"t/(wheels|pypi)", "/tm" r"p/plan"]
    banned = re.compile("|".join(hosts + paths))
    problems = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or path.suffix in (".safetensors", ".png", ".ico"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if found := banned.search(line):
                problems.append(f"{name}:{number}: {found[0]}")
    report(problems)
