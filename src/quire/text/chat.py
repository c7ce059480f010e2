"""The checkpoint's own chat template: found, compiled, rendered byte for byte as transformers renders it (S47).

Knows where templates live and what variables they see. Bringing OpenAI messages into the shape a template expects
is `text/messages.py`; the sandbox and its limits are `text/sandbox.py`. Rendering is synchronous and may take seconds
for a hostile template: call it off the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from quire.base.errors import ConfigError, TemplateError
from quire.text.meter import MAX_VALUE_CHARS, Meter, RenderLimitError
from quire.text.sandbox import TemplateSandbox
from quire.text.template_globals import RefusedByTemplateError
from quire.text.template_traits import (
    ReasoningStyle,
    TemplateTraits,
    ToolFormat,
    read_traits,
    reasoning_format,
    tool_format,
)
from quire.text.tokenizer_files import TokenizerFiles, read_json

MAX_TEMPLATE_CHARS = 2**20
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the text to be continued; transformers uses the same mark, trailing space included."""
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_TEMPLATE_FAILURES = (
    jinja2.TemplateError, RenderLimitError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What compiling or running a stranger's template may raise."""


class ChatTemplate:
    """One checkpoint's chat template, or its named set of them (`default`, `tool_use`)."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        if not templates or not templates.keys() & {"default", "tool_use"}:
            raise ConfigError(
                f"the chat templates are named {', '.join(templates) or 'nothing'}; one of them must be named default"
            )
        self.sources = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._traits: dict[str, TemplateTraits] = {}
        self._compiled: dict[str, jinja2.Template] = {}
        self._sandbox = TemplateSandbox()
        # The sandbox counts one rendering at a time.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model_path: str | Path, *, override_path: str | Path | None = None) -> ChatTemplate | None:
        """Find the template of a checkpoint: the override file, chat_template.jinja, tokenizer_config.json, then
        chat_template.json; None for a base model, which has none.

        Raises:
            ConfigError: when the override cannot be read or compiled, or a file of the checkpoint is damaged.
        """
        files = TokenizerFiles.read(model_path)
        if override_path is not None:
            template = cls({"default": _read_override(Path(override_path))}, files.named)
            template._check(override_path)
            return template
        sources = _find_sources(files)
        return cls(sources, files.named) if sources else None

    @classmethod
    def from_source(cls, source: str, model_path: str | Path) -> ChatTemplate:
        """The template with this text, which sees the special tokens of a checkpoint; nothing is compiled yet."""
        return cls({"default": source}, TokenizerFiles.read(model_path).named)

    def copy(self) -> ChatTemplate:
        """The same template with a sandbox of its own, so that neither waits for the other's renderings."""
        return ChatTemplate(self.sources, self._special_tokens)

    @property
    def source(self) -> str:
        """The text of the template used without tools."""
        return self.sources[self._choose(None)]

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls: a name of `text/replies/registry.py`."""
        return tool_format(self.sources[self._choose([])])

    @property
    def reasoning_format(self) -> ReasoningStyle:
        """How the model marks its reasoning: think, mistral, or none."""
        return reasoning_format(self.source)

    def traits(self, tools: Sequence[Any] | None = None) -> TemplateTraits:
        """What the template that serves a request with these `tools` expects of messages.

        Raises:
            TemplateError: when the template cannot be parsed.
        """
        name = self._choose(tools)
        if name not in self._traits:
            with self._lock, _Reporting():
                source = self._bounded_source(name)
                self._traits[name] = read_traits(source, self._sandbox.parse(source))
        return self._traits[name]

    def render(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Write a conversation down as the prompt the model was trained on.

        `variables` reach the template as they are (`enable_thinking=False`, `documents=[...]`), over special tokens of
        the same name.

        Raises:
            TemplateError: when the template refuses the conversation (with its own message), fails, or exceeds a limit.
        """
        if not messages:
            raise TemplateError("messages must hold at least one message", param="messages")
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message needs add_generation_prompt=false", param="continue_final_message"
            )
        chat = [_alias_reasoning({k: _plain(v) for k, v in message.items() if v is not None}) for message in messages]
        name = self._choose(tools)
        tail = _mark_final_text(chat, self.sources[name]) if continue_final_message else None
        values: dict[str, Any] = {"documents": None, **self._special_tokens, **_plain(variables)}
        values |= {"messages": chat, "tools": _plain(tools), "add_generation_prompt": add_generation_prompt}
        text = self._run(name, values)
        return text if tail is None else _cut_at_mark(text, tail)

    def _choose(self, tools: Sequence[Any] | None) -> str:
        if tools is not None and "tool_use" in self.sources:
            return "tool_use"
        return "default" if "default" in self.sources else "tool_use"

    def _run(self, name: str, values: dict[str, Any]) -> str:
        with self._lock, _Reporting():
            self._sandbox.meter = Meter()
            text = self._compile(name).render(values)
        if len(text) > MAX_VALUE_CHARS:
            found, limit = len(text), MAX_VALUE_CHARS
            raise TemplateError(f"the prompt has {found} characters; at most {limit} are allowed", param="messages")
        return text

    def _compile(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            self._compiled[name] = self._sandbox.from_string(self._bounded_source(name))
        return self._compiled[name]

    def _bounded_source(self, name: str) -> str:
        source = self.sources[name]
        if len(source) > MAX_TEMPLATE_CHARS:
            raise RenderLimitError(f"it is {len(source)} characters long; at most {MAX_TEMPLATE_CHARS} are allowed")
        return source

    def _check(self, path: str | Path) -> None:
        try:
            with self._lock, _Reporting():
                self._sandbox.meter = Meter()
                self._compile("default")
        except TemplateError as error:
            raise ConfigError(f"--chat-template {path}: {error}") from error


class _Reporting:
    """Turns whatever a template raises into a TemplateError that says so."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RefusedByTemplateError):
            raise TemplateError(str(error.message), param="messages") from error
        if isinstance(error, _TEMPLATE_FAILURES):
            detail = str(error)[:500] or type(error).__name__
            raise TemplateError(f"the chat template failed: {detail}", param="messages") from error


def _read_override(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path} cannot be read: {error}") from error


def _find_sources(files: TokenizerFiles) -> dict[str, str]:
    folder = files.directory
    found = {path.stem: _read_template(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        found["default"] = _read_template(folder / "chat_template.jinja")
    if found:
        return found
    declared = files.config.get("chat_template")
    if declared is None:
        declared = read_json(folder / "chat_template.json").get("chat_template")
    return _named_sources(declared)


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} in {path.parent} cannot be read: {error}") from error


def _named_sources(declared: Any) -> dict[str, str]:
    if not declared:
        return {}
    if isinstance(declared, str):
        return {"default": declared}
    try:
        pairs = declared.items() if isinstance(declared, dict) else [(e["name"], e["template"]) for e in declared]
        return {str(name): str(template) for name, template in pairs}
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"chat_template must be a string or a list of name and template, found {repr(declared)[:80]}"
        ) from error


def _plain(value: Any) -> Any:
    """A copy made of JSON's own types: methods of richer objects are out of a template's reach."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = (_plain(item) for item in value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The reasoning of a past turn under every name templates read it by."""
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_final_text(chat: list[dict[str, Any]], source: str) -> str:
    """Put the mark behind the last message's text; returns that text."""
    last = chat[-1]
    content = last.get("content")
    if "content" not in source or content is None:
        raise TemplateError("continue_final_message needs a last message with content", param="continue_final_message")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_TAG
        return content
    for part in reversed(content):
        if "text" in part:
            text = str(part["text"])
            part["text"] = text + _CONTINUE_TAG
            return text
    raise TemplateError("continue_final_message found no text in the last message", param="continue_final_message")


def _cut_at_mark(text: str, final: str) -> str:
    """The prompt up to the end of the final message's text."""
    mark = _CONTINUE_TAG.strip()
    if final.strip() not in text or mark not in text:
        raise TemplateError(
            "continue_final_message is not possible: the chat template changes or drops the final message",
            param="continue_final_message",
        )
    place = text.rindex(mark)
    if text[place : place + len(_CONTINUE_TAG)] == _CONTINUE_TAG:
        return text[:place]
    # The template trimmed the text, so what it kept of its end must go as well.
    return text[:place].rstrip()
