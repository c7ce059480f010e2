"""Every field of the official packages' request types has a place in our tables, put there by somebody.

constraints.txt says which versions they have in CI. With a newer one whose requests have more fields these tests fail
until each is honoured, accepted or refused on purpose.
"""

from __future__ import annotations

from typing import Any

import anthropic.types as messages
import msgspec
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.file_create_params import ExpiresAfter, FileCreateParams
from openai.types.file_list_params import FileListParams
from openai.types.responses import response_input_param as items
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming, StreamOptions
from openai.types.shared_params import Reasoning, ResponseFormatJSONSchema
from openai.types.shared_params.response_format_json_schema import JSONSchema

from quire.base.config import ServerConfig
from quire.protocol import anthropic as our_messages
from quire.protocol import chat as our_chat
from quire.protocol import common
from quire.protocol import responses as our_responses
from quire.server.app import create_app
from quire.server.batches.access import PageSize
from quire.server.openapi import REFUSED_KEY

DESCRIPTION = create_app(None, ServerConfig()).openapi()
HEADERS = {"user_profile_id", "workspace_id"}
"""Arguments that Anthropic's package sends as headers."""

BODIES: dict[str, Any] = {
    "/v1/chat/completions": ChatParams,
    "/v1/completions": CompletionCreateParamsNonStreaming,
    "/v1/embeddings": EmbeddingCreateParams,
    "/v1/responses": ResponseCreateParamsNonStreaming,
    "/v1/batches": BatchCreateParams,
    "/v1/messages": MessageCreateParamsNonStreaming,
    "/v1/messages/count_tokens": MessageCountTokensParams,
}
TURNS = (
    chat.ChatCompletionAssistantMessageParam,
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionFunctionMessageParam,
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionToolMessageParam,
    chat.ChatCompletionUserMessageParam,
)
PARTS = (
    chat.ChatCompletionContentPartTextParam,
    chat.ChatCompletionContentPartRefusalParam,
    chat.ChatCompletionContentPartImageParam,
    chat.ChatCompletionContentPartInputAudioParam,
    chat.chat_completion_content_part_param.File,
)
THINKING = (
    messages.ThinkingConfigAdaptiveParam,
    messages.ThinkingConfigDisabledParam,
    messages.ThinkingConfigEnabledParam,
)
CHOICES = (
    messages.ToolChoiceAnyParam,
    messages.ToolChoiceAutoParam,
    messages.ToolChoiceNoneParam,
    messages.ToolChoiceToolParam,
)
SAID = (responses.EasyInputMessageParam, responses.ResponseOutputMessageParam, items.Message)
TEXTS = (responses.ResponseInputTextParam, responses.ResponseOutputTextParam)

CALLED_ELSEWHERE = {"allowed_callers", "async", "defer_loading"}

# Ours, theirs, and the fields of theirs that are refused because nothing here stands for them.
COUNTERPARTS: list[tuple[type[msgspec.Struct], tuple[Any, ...], set[str]]] = [
    (our_chat.ChatMessage, TURNS, set()),
    (our_chat.ContentPart, PARTS, set()),
    (our_chat.Tool, (chat.ChatCompletionFunctionToolParam,), set()),
    (common.StreamOptions, (chat.ChatCompletionStreamOptionsParam,), set()),
    (common.ResponseFormat, (ResponseFormatJSONSchema,), set()),
    (common.JsonSchemaFormat, (JSONSchema,), set()),
    (our_responses.ResponsesStreamOptions, (StreamOptions,), set()),
    (our_responses.TextOptions, (responses.ResponseTextConfigParam,), set()),
    (our_responses.TextFormat, (responses.ResponseFormatTextJSONSchemaConfigParam,), set()),
    (our_responses.ReasoningOptions, (Reasoning,), {"context", "mode"}),
    (our_responses.FlatTool, (responses.FunctionToolParam,), CALLED_ELSEWHERE | {"output_schema"}),
    (our_responses.MessageItem, SAID, set()),
    (our_responses.TextPart, TEXTS, set()),
    (our_responses.RefusalPart, (responses.ResponseOutputRefusalParam,), set()),
    (our_responses.CallItem, (responses.ResponseFunctionToolCallParam,), {"async", "caller", "namespace"}),
    (our_responses.CallOutputItem, (items.FunctionCallOutput,), {"caller", "namespace"}),
    (our_responses.ReasoningItem, (responses.ResponseReasoningItemParam,), set()),
    (our_messages.MessageParam, (messages.UserMessageParam, messages.AssistantMessageParam), set()),
    (our_messages.TextParam, (messages.TextBlockParam,), {"citations"}),
    (our_messages.ThinkingParam, (messages.ThinkingBlockParam,), set()),
    (our_messages.ToolUseParam, (messages.ToolUseBlockParam,), {"caller", "toolset_name"}),
    (our_messages.ToolResultParam, (messages.ToolResultBlockParam,), {"toolset_name"}),
    (our_messages.ToolParam, (messages.ToolParam,), {"allowed_callers", "defer_loading", "input_examples"}),
    (our_messages.ToolChoice, CHOICES, set()),
    (our_messages.ThinkingConfig, THINKING, set()),
    (our_messages.OutputConfig, (messages.OutputConfigParam,), set()),
    (our_messages.OutputFormat, (messages.JSONOutputFormatParam,), set()),
    (our_messages.Metadata, (messages.MetadataParam,), set()),
    (our_messages.CacheControl, (messages.CacheControlEphemeralParam,), set()),
]


def keys(*kinds: Any) -> set[str]:
    """The keys of typed dictionaries."""
    return {name for kind in kinds for name in kind.__required_keys__ | kind.__optional_keys__}


def listed(route: str) -> set[str]:
    """The fields of a route's body that docs/fields.md lists."""
    operation = DESCRIPTION["paths"][route]["post"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return {*DESCRIPTION["components"]["schemas"][name]["properties"], *operation.get(REFUSED_KEY, ())}


@pytest.mark.parametrize("route", BODIES)
def test_every_field_of_a_request_in_the_official_packages_is_listed(route):
    """S51: honoured, without effect or refused, and never by accident."""
    assert keys(BODIES[route]) - HEADERS - listed(route) == set()


@pytest.mark.parametrize(("ours", "theirs", "refused"), COUNTERPARTS, ids=lambda one: getattr(one, "__name__", ""))
def test_every_field_of_a_part_in_the_official_packages_is_known_or_refused_on_purpose(ours, theirs, refused):
    own = {spec.encode_name for spec in msgspec.structs.fields(ours)} | {ours.__struct_config__.tag_field}
    assert keys(*theirs) - own == refused


def test_the_form_and_the_lists_of_files_take_what_the_official_package_sends():
    form = DESCRIPTION["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    sent = (keys(FileCreateParams) - {"expires_after"}) | {f"expires_after[{name}]" for name in keys(ExpiresAfter)}
    assert set(form["properties"]) == sent
    assert keys(FileListParams) == {*PageSize(1, 1).query, "purpose"}
