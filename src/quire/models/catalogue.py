"""What the installed `transformers` could run for us, read from its source files as text: it is not imported here.

Importing transformers costs seconds and torch; `quire check` needs only to know whether a class exists there and takes
its attention from the registry the adapter plugs into. Final proof is the adapter's own probe when the model is built.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

_PASSED_THROUGH = {"attention_interface", "decoder_layer", "self_attn", "attn", "attention"}
"""What a step's arguments pass on their way from the model to the attention function."""
_MODEL_TYPE = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class AdapterSupport:
    """Whether the adapter can take a class on; `reason` says why not, empty when it can."""

    reason: str = ""


def adapter_support(architecture: str, model_type: str) -> AdapterSupport:
    """Whether the installed transformers has `architecture` in a form the adapter can run."""
    root = _transformers_models()
    if root is None:
        return AdapterSupport("the generic adapter needs transformers, which is not installed: pip install 'quire[hf]'")
    source = _modeling_source(root, architecture, model_type)
    if source is None:
        return AdapterSupport("neither quire nor the installed transformers knows this architecture")
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return AdapterSupport("it is not a causal language model in transformers")
    if "_is_stateful = True" in source:
        return AdapterSupport("its layers keep a recurrent state, which has no pages")
    if "_supports_attention_backend = True" not in source:
        return AdapterSupport("its attention is not open to replacement in transformers (no attention interface)")
    if not _hands_arguments_on(source):
        return AdapterSupport("its layers in transformers do not hand their arguments on to attention")
    return AdapterSupport()


def _hands_arguments_on(source: str) -> bool:
    """Whether every call on the way to attention ends in `**kwargs`; the code is parsed, not run."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    on_the_way = [call for call in calls if _called_name(call) in _PASSED_THROUGH]
    return all(any(keyword.arg is None for keyword in call.keywords) for call in on_the_way)


def _called_name(call: ast.Call) -> str:
    """`f` for f(...) and for self.f(...), else nothing."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self":
        return function.attr
    return ""


def _transformers_models() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "models"


def _modeling_source(root: Path, architecture: str, model_type: str) -> str | None:
    """Text of the file that defines the class; the folder is usually called like the model type."""
    if not architecture.isidentifier() or not _MODEL_TYPE.fullmatch(model_type):
        return None
    folder = model_type.replace("-", "_")
    likely = [root / name / f"modeling_{name}.py" for name in (folder, folder.removesuffix("_text"))]
    for file in (*likely, *sorted(root.glob("*/modeling_*.py"))):
        if not file.is_file():
            continue
        source = file.read_text(encoding="utf-8")
        if f"\nclass {architecture}(" in source:
            return source
    return None
