"""Where chat templates run: an immutable Jinja sandbox without loader, in which size and time are counted (SEC-6).

A template is code from a stranger. Jinja's sandbox keeps it away from Python's internals; this file keeps it from
eating the machine. Every loop turn, call, operator, filter and piece of output passes a `Meter`, and operations whose
result could be huge are judged by their operands before they run. Chat semantics are the business of `text/chat.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from quire.text.meter import TICK_COST, Meter

_DROPPED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr", "striptags")
"""Jinja filters without a use in prompts whose cost is not linear in their input, or that only make HTML."""
_SHALLOW_FILTERS = frozenset({
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject",
    "rejectattr", "reverse", "select", "selectattr", "slice",
})  # fmt: skip
"""Filters that look at a container's elements one by one; all others may walk the whole tree below it."""
_WIDTH_FILTERS = frozenset({"batch", "center", "indent", "round", "slice", "truncate"})
_COMPARING_TESTS = ("eq", "equalto", "==", "ne", "!=", "lt", "<", "le", "<=", "gt", ">", "ge", ">=", "in", "greaterthan",
                    "lessthan")  # fmt: skip
_WIDTH_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_COMPARING_METHODS = frozenset({"changed", "index", "count"})
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
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "_tick": self._tick,
            "_concat": self._concat,
            "_walked": self._walked,
            "_copied": self._copied,
        }
        for name in _COMPARING_TESTS:
            if name in self.tests:
                self.tests[name] = self._metered_test(self.tests[name])
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(Parser(self, source, name, filename).parse())
        return tree

    # What Jinja's compiled code calls back into.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator after judging what its result would cost."""
        self.meter.operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        """Call a macro, function or method after judging what its result would cost."""
        __self.meter.charge(TICK_COST)
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            __self._judge_text_method(name, owner, args, kwargs)
        elif name in _COMPARING_METHODS:
            __self.meter.walk((owner if isinstance(owner, list | tuple) else None, args))
        result = super().call(__context, __obj, *args, **kwargs)
        __self.meter.charge_result(result)
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
            if value.__name__ == "format_map":
                args, kwargs = (), args[0]
            return _BoundedFormatter(self).vformat(template, args, kwargs)

        return bounded_format

    def _judge_text_method(self, name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        meter = self.meter
        if name in _WIDTH_METHODS:
            widths = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
            meter.expect((text.count("\t") + 1 if name == "expandtabs" else 1) * max([*widths, len(text), 8]))
        elif name == "replace" and len(args) >= 2:
            meter.replacement(text, args[0], args[1])
        elif name == "join" and args:
            meter.joined(text, args[0])
        elif name == "translate":
            raise SecurityError("str.translate is not available in chat templates")

    # What the instrumented tree calls.

    @jinja2.pass_context
    def _finalize(self, context: Context, value: Any) -> str:
        text = self.meter.text(value)
        self.meter.charge(len(text) + 1)
        return text

    @jinja2.pass_context
    def _tick(self, context: Context, value: Any) -> Any:
        self.meter.charge(TICK_COST)
        return value

    @jinja2.pass_context
    def _concat(self, context: Context, values: tuple[Any, ...]) -> str:
        pieces = [self.meter.text(value) for value in values]
        self.meter.expect(sum(map(len, pieces)))
        return "".join(pieces)

    @jinja2.pass_context
    def _walked(self, context: Context, value: Any) -> Any:
        if isinstance(value, list | tuple | dict):
            self.meter.walk(value)
        return value

    @jinja2.pass_context
    def _copied(self, context: Context, value: Any) -> Any:
        self.meter.charge_result(value)
        return value

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        is_shallow = name in _SHALLOW_FILTERS

        def metered(*args: Any, **kwargs: Any) -> Any:
            values = [*args, *kwargs.values()]
            for value in values:
                self.meter.charge_result(value) if is_shallow else self._walked_unless_foreign(value)
            self._judge_filter(name, values, kwargs)
            result = function(*args, **kwargs)
            self.meter.charge_result(result)
            return result

        _copy_pass_arg(function, metered)
        return metered

    def _walked_unless_foreign(self, value: Any) -> None:
        if isinstance(value, list | tuple | dict):
            self.meter.walk(value)

    def _judge_filter(self, name: str, values: list[Any], kwargs: dict[str, Any]) -> None:
        plain = [value for value in values if not isinstance(value, Context | jinja2.Environment | nodes.EvalContext)]
        if name in _WIDTH_FILTERS:
            widths = [abs(value) for value in plain[1:] if isinstance(value, int)]
            texts = [value for value in plain if isinstance(value, str)]
            lines = texts[0].count("\n") + 1 if texts and name == "indent" else 1
            self.meter.expect(lines * max([*widths, *map(len, texts), 0]))
            if name == "round" and max(widths, default=0) > 64:
                raise SecurityError("round() takes at most 64 digits in chat templates")
        elif name == "format":
            self.meter.operator("%", plain[0], tuple(plain[1:]))
        elif name == "replace" and len(plain) >= 3:
            self.meter.replacement(str(plain[0]), plain[1], plain[2])
        elif name == "join":
            self.meter.joined(str(plain[1]) if len(plain) > 1 else "", plain[0])
        elif name == "tojson":
            self.meter.json(plain)

    def _metered_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any) -> Any:
            self.meter.walk(args)
            return function(*args)

        return metered


class _Instrument(NodeTransformer):
    """Put the meter's hooks into a parsed template, without changing what it means."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_hook("_tick", nodes.Const(None)), lineno=node.lineno))
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # Constants pass `finalize` when the template runs; template data does not.
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _hook("_concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        # Against a constant a comparison ends at once; two nested containers may take exponential time.
        if not any(isinstance(side, nodes.Const) for side in sides):
            node.expr = _hook("_walked", node.expr)
            for operand in node.ops:
                operand.expr = _hook("_walked", operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _hook("_walked", node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _hook("_copied", node.node)
        return node


def _hook(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; for a prompt its body renders in place."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag's body as a call block, so that variables set inside stay inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


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


class _TemplateDict:
    """`dict(...)` in templates: makes dicts, and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A dict with one value for all keys."""
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """`namespace(...)` in templates; refuses names with an underscore in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No named parameter, so that every name is free for the template.
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        Namespace.__setitem__(self, name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace attribute may not start with an underscore, found {name!r}")


def _copy_pass_arg(source: Callable[..., Any], target: Any) -> None:
    kind = getattr(source, "jinja_pass_arg", None)
    if kind is not None:
        target.jinja_pass_arg = kind


def _raise_exception(message: Any) -> NoReturn:
    raise RefusedByTemplateError(str(message)[:1000])


class RefusedByTemplateError(jinja2.TemplateError):
    """The template called `raise_exception`: the conversation is not one it can write down."""


def _strftime_now(format: str) -> str:
    if len(format) > 256 or any(len(digits) > 3 for digits in _DIGITS.findall(format)):
        raise SecurityError("strftime_now takes at most 256 characters and no large widths")
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
