"""Fields other servers know and this one refuses, each with a reason or a remedy; nothing is ignored silently."""

from __future__ import annotations

_STRUCTURED = "use structured_outputs, or response_format"
_TEMPLATE = "templates come from the operator (--chat-template); use chat_template_kwargs for their arguments"
_BEAM = "beam search is available in the Python API"
_PLUGINS = "custom processors are plugins of the operator"
_TEXT_ONLY = "this model takes and gives text"
_CACHE = "cached prefixes live until their pages are needed"

COMMON_HINTS: dict[str, str] = {
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "regex": _STRUCTURED,
    "ebnf": _STRUCTURED,
    "use_beam_search": _BEAM,
    "beam_width": _BEAM,
    "length_penalty": _BEAM,
    "prompt_embeds": "prompts are text or token ids",
    "request_id": "send it as the header x-request-id",
    "logits_processors": _PLUGINS,
    "custom_logit_processor": _PLUGINS,
    "lora_path": "adapters are not available",
    "return_tokens_as_token_ids": "use return_token_ids",
    "best_of": "use n",
}
"""For both kinds of completion."""

_TO_CHAT = "send it to /v1/chat/completions"

COMPLETION_HINTS: dict[str, str] = COMMON_HINTS | {
    "messages": "send conversations to /v1/chat/completions",
    "tools": _TO_CHAT,
    "tool_choice": _TO_CHAT,
    "functions": _TO_CHAT,
    "function_call": _TO_CHAT,
    "max_completion_tokens": "use max_tokens",
    "top_logprobs": "use logprobs",
    "thinking_token_budget": "the end of reasoning is known for conversations; send them to /v1/chat/completions",
}
"""For plain completions."""

CHAT_HINTS: dict[str, str] = COMMON_HINTS | {
    "prompt": "send prompts to /v1/completions",
    "audio": _TEXT_ONLY,
    "web_search_options": "search belongs in front of the server",
    "documents": "put them into the messages",
    "echo": "use return_token_ids, or /v1/completions",
    "mm_processor_kwargs": _TEXT_ONLY,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
}
"""For chat."""

_KEPT = "keep the conversation with previous_response_id, or send it in input"

RESPONSES_HINTS: dict[str, str] = COMMON_HINTS | {
    "messages": "send them as input, or to /v1/chat/completions",
    "prompt": "stored prompts are not kept here; send input and instructions",
    "max_tokens": "use max_output_tokens",
    "max_completion_tokens": "use max_output_tokens",
    "response_format": "use text.format",
    "structured_outputs": "use text.format, or /v1/chat/completions",
    "logprobs": 'use include: ["message.output_text.logprobs"]',
    "n": "one response has one answer; /v1/chat/completions takes n",
    "conversation": _KEPT,
    "context_management": _KEPT,
    "background_options": "responses come while the connection is open",
    "max_tool_calls": "it counts tools that the server runs, and here there are none",
    "chat_template": _TEMPLATE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "image": _TEXT_ONLY,
    "access_programs": "they are of OpenAI's accounts",
}
"""For responses."""

_SPEED = "there is one speed"
_CONVERSATION = {
    "container": "there is no place where code of the model's runs",
    "mcp_servers": "connect to them in front of the server and send their tools",
    "context_management": "send the conversation as the model is to read it",
}

COUNT_TOKENS_HINTS: dict[str, str] = _CONVERSATION | {"prompt": "send messages", "speed": _SPEED}
"""For counting a message's tokens."""

MESSAGES_HINTS: dict[str, str] = (
    COMMON_HINTS
    | _CONVERSATION
    | {
        "prompt": "send prompts to /v1/completions",
        "stop": "use stop_sequences",
        "max_completion_tokens": "use max_tokens",
        "max_tokens_to_sample": "use max_tokens",
        "response_format": "use output_config.format",
        "structured_outputs": "use output_config.format, or /v1/chat/completions",
        "thinking_token_budget": "use thinking.budget_tokens",
        "n": "one message has one answer; /v1/chat/completions takes n",
        "speed": _SPEED,
        "diagnostics": "usage.cache_read_input_tokens tells what the cache held",
        "inference_geo": "requests are served where the server runs",
        "chat_template": _TEMPLATE,
    }
)
"""For messages."""
