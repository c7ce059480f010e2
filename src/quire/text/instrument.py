"""The meter's hooks in a template's syntax tree: where Jinja's sandbox offers no callback, the tree is given one.

The hooks are filters with names no template needs; none changes what the template means. They find the meter on the
environment that renders.
"""

from __future__ import annotations

from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from quire.text.meter import TICK_COST, Meter


class Instrument(NodeTransformer):
    """Adds the hooks. `visit_*` names are Jinja's."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Every turn of a loop is a tick."""
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_hook("_tick", nodes.Const(None, lineno=node.lineno)), lineno=node.lineno))
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        """Constants pass `finalize` when the template runs; template data does not."""
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """`a ~ b` is no operator that Jinja's sandbox can intercept."""
        self.generic_visit(node)
        return _hook("_concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Comparing two nested containers may take exponential time; against a constant it ends at once."""
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if not any(isinstance(side, nodes.Const) for side in sides):
            node.expr = _hook("_walked", node.expr)
            for operand in node.ops:
                operand.expr = _hook("_walked", operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        """Hashing a key takes time in proportion to what is in it."""
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _hook("_walked", node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """A slice is a copy."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _hook("_copied", node.node)
        return node


def _hook(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _meter(context: Context) -> Meter:
    meter: Meter = context.environment.meter  # type: ignore[attr-defined]
    return meter


# `pass_context` also keeps Jinja from evaluating a hook once, at compile time.
@jinja2.pass_context
def _tick(context: Context, value: Any) -> Any:
    _meter(context).charge(TICK_COST)
    return value


@jinja2.pass_context
def _concat(context: Context, values: tuple[Any, ...]) -> str:
    meter = _meter(context)
    pieces = [meter.text(value) for value in values]
    meter.expect(sum(map(len, pieces)))
    return "".join(pieces)


@jinja2.pass_context
def _walked(context: Context, value: Any) -> Any:
    _meter(context).walk_container(value)
    return value


@jinja2.pass_context
def _copied(context: Context, value: Any) -> Any:
    _meter(context).charge_result(value)
    return value


HOOKS = {"_tick": _tick, "_concat": _concat, "_walked": _walked, "_copied": _copied}
