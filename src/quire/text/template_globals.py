"""What chat templates find beside Jinja's own names: the functions and the tag that transformers gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.utils import Namespace

_DIGITS = re.compile(r"\d+")


class RefusedByTemplateError(jinja2.TemplateError):
    """The template called `raise_exception`: the conversation is not one it can write down."""


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


class TemplateDict:
    """`dict(...)` in templates: makes dicts, and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A dict with one value for all keys."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
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


def raise_exception(message: Any) -> NoReturn:
    """Refuse the conversation; the message reaches the client, shortened."""
    raise RefusedByTemplateError(str(message)[:1000])


def strftime_now(format: str) -> str:
    """The local time now; widths are bounded because the C library pads to any width."""
    if len(format) > 256 or any(len(digits) > 3 for digits in _DIGITS.findall(format)):
        raise SecurityError("strftime_now takes at most 256 characters and no large widths")
    return datetime.now().strftime(format)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


GLOBALS: dict[str, Any] = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
}
