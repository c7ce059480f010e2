"""A value for every field that a body may have, and what must be sent along for it to show.

`test_fields.py` sends them. A field without a sample fails there, so that none is listed in docs/fields.md untested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KEPT = "<the id of a response that was kept>"
"""Stands in a sample for what only a server can give."""

TALK = [{"role": "user", "content": "Hi"}]
OTHER_TALK = [{"role": "user", "content": "Bye"}]
PREFILLED = [*TALK, {"role": "assistant", "content": "Hel"}]
FUNCTION = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT_TOOLS = [{"type": "function", **FUNCTION}]
OUR_TOOLS = [{"name": "f", "input_schema": FUNCTION["parameters"]}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PREFER = {"type": "content", "content": "Once"}


@dataclass(frozen=True)
class Sample:
    """A value; `along` is sent with it and without it, `refused` is a value that is not taken."""

    value: Any
    along: dict[str, Any] = field(default_factory=dict)
    refused: Any = None
    status: int = 200
    """Other than 200 for a field that shows only in what it refuses."""
    is_noted: bool = False
    """Whether its effect is one that warnings tell of."""


NO_MODEL = Sample("no-such-model", status=404)
STRICT = Sample(True, along={"colour": "red"}, status=400)
TAGS: dict[str, Sample] = {
    "user": Sample("somebody"),
    "store": Sample(True),
    "metadata": Sample({"a": "b"}),
    "safety_identifier": Sample("somebody"),
    "prompt_cache_key": Sample("key"),
    "service_tier": Sample("auto"),
    "verbosity": Sample("low"),
    "moderation": Sample({"model": "m"}),
    "prediction": Sample(PREFER),
}
DRAWING: dict[str, Sample] = {
    "temperature": Sample(0.5),
    "top_p": Sample(0.5),
    "top_k": Sample(3),
    "min_p": Sample(0.1),
    "seed": Sample(7),
    "logit_bias": Sample({"5": 1}),
    "priority": Sample(3),
    "cache_salt": Sample("salt"),
    "timeout": Sample(9.0),
    "stream": Sample(True),
    "strict": STRICT,
}
PENALTIES: dict[str, Sample] = {
    "presence_penalty": Sample(1.0),
    "frequency_penalty": Sample(1.0),
    "repetition_penalty": Sample(1.5),
    "stop": Sample("wör"),
    "min_tokens": Sample(2),
    "ignore_eos": Sample(True),
}
SAMPLING: dict[str, Sample] = {
    **DRAWING,
    **PENALTIES,
    **TAGS,
    "model": Sample("org/alias"),
    "n": Sample(2),
    "stream_options": Sample({"include_usage": True}, along={"stream": True}),
    "max_tokens": Sample(3),
    "stop_token_ids": Sample([65]),
    "include_stop_str_in_output": Sample(True),
    "skip_special_tokens": Sample(False),
    "spaces_between_special_tokens": Sample(False),
    "truncate_prompt_tokens": Sample(2, is_noted=True),
    "prompt_logprobs": Sample(1),
    "allowed_token_ids": Sample([65]),
    "bad_words": Sample(["x"]),
    "return_token_ids": Sample(True),
    "response_format": Sample({"type": "json_object"}),
    "structured_outputs": Sample({"regex": "a+"}),
}
REQUIRED = {"tools": TOOLS, "tool_choice": "required"}
CHAT: dict[str, Sample] = {
    **SAMPLING,
    "messages": Sample(OTHER_TALK),
    "add_special_tokens": Sample(True),
    "max_completion_tokens": Sample(3),
    "logprobs": Sample(True),
    "top_logprobs": Sample(2, along={"logprobs": True}),
    "tools": Sample(TOOLS),
    "tool_choice": Sample("none", along={"tools": TOOLS}),
    "parallel_tool_calls": Sample(False, along=REQUIRED),
    "functions": Sample([FUNCTION]),
    "function_call": Sample("none", along={"functions": [FUNCTION]}),
    "modalities": Sample(["text"], refused=["audio"]),
    "add_generation_prompt": Sample(False),
    "continue_final_message": Sample(True, along={"messages": PREFILLED, "add_generation_prompt": False}),
    "chat_template": Sample("{{ messages }}"),
    "chat_template_kwargs": Sample({"a": 1}),
    "reasoning_effort": Sample("high"),
    "thinking_token_budget": Sample(5),
}
COMPLETIONS: dict[str, Sample] = {
    **SAMPLING,
    "truncate_prompt_tokens": Sample(2),
    "prompt": Sample("Bye"),
    "add_special_tokens": Sample(False),
    "logprobs": Sample(2),
    "echo": Sample(True),
    "best_of": Sample(2, along={"n": 2}, refused=3),
    "suffix": Sample("", refused="the end"),
}
WITH_LOGPROBS = {"include": ["message.output_text.logprobs"]}
RESPONSES: dict[str, Sample] = {
    **DRAWING,
    **PENALTIES,
    **{name: sample for name, sample in TAGS.items() if name not in ("verbosity", "prediction")},
    "model": Sample("org/alias"),
    "input": Sample("Bye"),
    "instructions": Sample("Be brief."),
    "thinking_token_budget": Sample(5),
    "previous_response_id": Sample(KEPT),
    "tools": Sample(FLAT_TOOLS),
    "tool_choice": Sample("none", along={"tools": FLAT_TOOLS}),
    "parallel_tool_calls": Sample(False, along={"tools": FLAT_TOOLS, "tool_choice": "required"}),
    "text": Sample({"format": {"type": "json_object"}}),
    "reasoning": Sample({"summary": "auto"}, refused={"summary": "detailed"}),
    "include": Sample(WITH_LOGPROBS["include"]),
    "max_output_tokens": Sample(3),
    "top_logprobs": Sample(2, along=WITH_LOGPROBS),
    "truncation": Sample("disabled", refused="auto"),
    "background": Sample(False, refused=True),
    "store": Sample(False),
    "stream_options": Sample(
        {"include_obfuscation": False}, along={"stream": True}, refused={"include_obfuscation": True}
    ),
    "chat_template_kwargs": Sample({"a": 1}),
}
CONVERSATION: dict[str, Sample] = {
    "messages": Sample(OTHER_TALK),
    "system": Sample("Be brief."),
    "tools": Sample(OUR_TOOLS),
    "tool_choice": Sample({"type": "none"}, along={"tools": OUR_TOOLS}),
    "thinking": Sample({"type": "disabled"}),
    "output_config": Sample({"format": {"type": "json_schema", "schema": SCHEMA}}),
    "cache_control": Sample({"type": "ephemeral"}),
    "chat_template_kwargs": Sample({"a": 1}),
}
MESSAGES: dict[str, Sample] = {
    **DRAWING,
    **CONVERSATION,
    "model": Sample("org/alias"),
    "max_tokens": Sample(3),
    "stop_sequences": Sample(["wör"]),
    "metadata": Sample({"user_id": "somebody"}),
    "service_tier": Sample("auto"),
}
VECTORS: dict[str, Sample] = {
    "model": NO_MODEL,
    "truncate_prompt_tokens": Sample(2),
    "priority": Sample(3),
    "cache_salt": Sample("salt"),
    "user": Sample("somebody"),
}
EMBEDDINGS: dict[str, Sample] = {
    **VECTORS,
    "input": Sample("w2 w3"),
    "encoding_format": Sample("base64"),
    "dimensions": Sample(4),
    "normalize": Sample(False),
    "add_special_tokens": Sample(False),
}
TEXT = {"messages": None, "prompt": "Hi"}
TOKENIZE: dict[str, Sample] = {
    "model": NO_MODEL,
    "prompt": Sample("Bye", along=TEXT),
    "messages": Sample(OTHER_TALK),
    "tools": Sample(TOOLS),
    "add_special_tokens": Sample(False, along=TEXT),
    "add_generation_prompt": Sample(False),
    "continue_final_message": Sample(True, along={"messages": PREFILLED, "add_generation_prompt": False}),
    "chat_template": Sample("{{ messages }}"),
    "chat_template_kwargs": Sample({"a": 1}),
    "return_token_strs": Sample(True, along=TEXT),
}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "quire-demo", "messages": TALK},
    "/v1/completions": {"model": "quire-demo", "prompt": "Hello"},
    "/v1/responses": {"model": "quire-demo", "input": "Hi"},
    "/v1/messages": {"model": "quire-demo", "messages": TALK, "max_tokens": 64},
    "/v1/messages/count_tokens": {"model": "quire-demo", "messages": TALK},
    "/tokenize": {"messages": TALK},
    "/detokenize": {"tokens": [72, 105]},
    "/v1/embeddings": {"input": "w1 w2 w3 w4"},
    "/pooling": {"input": "w1 w2 w3 w4"},
    "/classify": {"input": "w1 w2 w3 w4"},
    "/v1/score": {"text_1": "w1 w2 w3", "text_2": "w2 w3 w4"},
    "/v1/rerank": {"query": "w1 w2 w3", "documents": ["w2 w3 w4", "w5"]},
}
"""The smallest useful body of each route. `/v1/batches` and `/v1/files` have theirs from an upload."""

SAMPLES: dict[str, dict[str, Sample]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": CONVERSATION | {"model": NO_MODEL},
    "/tokenize": TOKENIZE,
    "/detokenize": {"tokens": Sample([72]), "model": NO_MODEL},
    "/v1/embeddings": EMBEDDINGS,
    "/pooling": EMBEDDINGS,
    "/classify": {**VECTORS, "input": Sample("w2 w3"), "add_special_tokens": Sample(False)},
    "/v1/score": {**VECTORS, "text_1": Sample("w5 w6"), "text_2": Sample("w5 w6")},
    "/v1/rerank": {
        **VECTORS,
        "query": Sample("w5 w6"),
        "documents": Sample(["w5"]),
        "top_n": Sample(1),
        "return_documents": Sample(False),
    },
}
