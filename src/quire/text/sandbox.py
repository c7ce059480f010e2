"""Where chat templates run: an immutable Jinja sandbox without loader, in which size and time are counted (SEC-6).

A template is code from a stranger. Jinja's sandbox keeps it away from Python's internals; this file keeps it from
eating the machine. Every loop turn, call, operator, filter and piece of output passes a `Meter`, and operations whose
result could be huge are judged by their operands before they run. Chat semantics are the business of `text/chat.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from quire.text.instrument import HOOKS, Instrument
from quire.text.meter import TICK_COST, Meter
from quire.text.template_globals import GLOBALS, GenerationTag, tojson

_DROPPED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr", "striptags")
"""Jinja filters without a use in prompts whose cost is not linear in their input, or that only make HTML."""
_SHALLOW_FILTERS = frozenset({
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject",
    "rejectattr", "reverse", "select", "selectattr", "slice",
})  # fmt: skip
"""Filters that look at a container's elements one by one; all others may walk the whole tree below it."""
_WIDTH_FILTERS = frozenset({"batch", "center", "indent", "slice", "truncate"})
_COMPARING_TESTS = frozenset({
    "eq", "equalto", "==", "ne", "!=", "lt", "<", "le", "<=", "gt", ">", "ge", ">=", "in", "greaterthan", "lessthan",
})  # fmt: skip
_WIDTH_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_COMPARING_METHODS = frozenset({"changed", "index", "count"})
_FOREIGN = (Context, jinja2.Environment, nodes.EvalContext)
_DIGITS = re.compile(r"\d+")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment with the globals and filters chat templates rely on, all metered.

    One sandbox serves one rendering at a time: the caller sets `meter` under a lock.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
            finalize=self._finalize,
        )
        self.meter = Meter()
        kept = {name: function for name, function in self.filters.items() if name not in _DROPPED_FILTERS}
        kept["tojson"] = tojson
        self.filters = {name: self._metered_filter(name, function) for name, function in kept.items()} | HOOKS
        for name in _COMPARING_TESTS & self.tests.keys():
            self.tests[name] = self._metered_test(self.tests[name])
        del self.globals["lipsum"]
        self.globals |= GLOBALS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Instrument().visit(Parser(self, source, name, filename).parse())
        return tree

    @jinja2.pass_context
    def _finalize(self, context: Context, value: Any) -> str:
        """Count one piece of output; with the context as argument Jinja does not fold it at compile time."""
        text = self.meter.text(value)
        self.meter.charge(len(text) + 1)
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator after judging what its result would cost."""
        self.meter.operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a macro, function or method after judging what its result would cost."""
        meter = __self.meter
        meter.charge(TICK_COST)
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            args = meter.sized(args) if name == "join" else args
            _judge_text_method(meter, name, owner, [*args, *kwargs.values()])
        elif name in _COMPARING_METHODS:
            meter.walk((owner if isinstance(owner, list | tuple) else None, args))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.charge_result(result)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscribe; the key's hash may cost as much as the key is deep."""
        if isinstance(argument, tuple):
            self.meter.walk(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with widths and results bounded."""
        if super().wrap_str_format(value) is None:
            return None
        template: str = value.__self__

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            formatter = _BoundedFormatter(self)
            if value.__name__ == "format_map":
                return formatter.vformat(template, (), args[0])
            return formatter.vformat(template, args, kwargs)

        return bounded_format

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        is_shallow = name in _SHALLOW_FILTERS

        def metered(*args: Any, **kwargs: Any) -> Any:
            meter = self.meter
            args = meter.sized(args) if name == "join" else args
            values = [value for value in (*args, *kwargs.values()) if not isinstance(value, _FOREIGN)]
            for value in values:
                meter.charge_result(value) if is_shallow else meter.walk_container(value)
            _judge_filter(meter, name, values)
            result = function(*args, **kwargs)
            meter.charge_result(result)
            return result

        _copy_pass_arg(function, metered)
        return metered

    def _metered_test(self, function: Any) -> Callable[..., Any]:
        def metered(*args: Any) -> Any:
            self.meter.walk(args)
            return function(*args)

        return metered


class _BoundedFormatter(SandboxedFormatter):
    def __init__(self, sandbox: TemplateSandbox) -> None:
        super().__init__(sandbox)
        self._meter = sandbox.meter

    def format_field(self, value: Any, format_spec: str) -> str:
        """Format one field whose width is bounded."""
        self._meter.expect(max(map(int, _DIGITS.findall(format_spec)), default=0))
        self._meter.walk(value)
        text: str = super().format_field(value, format_spec)
        self._meter.charge(len(text))
        return text


def _judge_text_method(meter: Meter, name: str, text: str, values: list[Any]) -> None:
    """Judge `text.name(*values)`; methods not named here make nothing longer than their operands."""
    if name in _WIDTH_METHODS:
        widths = [value for value in values if isinstance(value, int)]
        meter.expect((text.count("\t") + 1 if name == "expandtabs" else 1) * max([*widths, len(text), 8]))
    elif name == "replace" and len(values) >= 2:
        meter.replacement(text, values[0], values[1])
    elif name == "join" and values:
        meter.joined(text, values[0])
    elif name == "translate":
        raise SecurityError("str.translate is not available in chat templates")


def _judge_filter(meter: Meter, name: str, values: list[Any]) -> None:
    """Judge `values[0] | name(*values[1:])`."""
    if name in _WIDTH_FILTERS:
        widths = [abs(value) for value in values[1:] if isinstance(value, int)]
        texts = [value for value in values if isinstance(value, str)]
        lines = texts[0].count("\n") + 1 if texts and name == "indent" else 1
        meter.expect(lines * max([*widths, *map(len, texts), 0]))
    elif name == "round" and any(isinstance(value, int) and abs(value) > 64 for value in values[1:]):
        raise SecurityError("round() takes at most 64 digits in chat templates")
    elif name == "format":
        meter.operator("%", str(values[0]), tuple(values[1:]))
    elif name == "replace" and len(values) >= 3:
        meter.replacement(str(values[0]), values[1], values[2])
    elif name == "join":
        meter.joined(str(values[1]) if len(values) > 1 else "", values[0])
    elif name == "tojson":
        meter.json(values)


def _copy_pass_arg(source: Callable[..., Any], target: Any) -> None:
    kind = getattr(source, "jinja_pass_arg", None)
    if kind is not None:
        target.jinja_pass_arg = kind
