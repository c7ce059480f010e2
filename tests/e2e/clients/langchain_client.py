"""LangChain's OpenAI classes against the server at argv[1]; prints what came back as JSON."""

import json
import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field


class Fruit(BaseModel):
    """A fruit."""

    name: Literal["apple", "pear"]
    grams: int = Field(ge=1, le=999)


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """Tells the weather in a city."""
    return f"12 degrees in {city}"


url = f"{sys.argv[1]}/v1"
model = ChatOpenAI(base_url=url, api_key="unused", model="quire-demo", temperature=0, max_tokens=64)
invoked = model.invoke("Hello!")
streamed = list(model.stream("Hello!"))
asking = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
called = asking.invoke("What is the weather?")
(call,) = called.tool_calls
history = [
    HumanMessage("What is the weather?"),
    called,
    ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]),
]
chunks = None
for chunk in asking.stream("What is the weather?"):
    chunks = chunk if chunks is None else chunks + chunk
structured = model.with_structured_output(Fruit, method="json_schema").invoke("Name a fruit.")
vectors = OpenAIEmbeddings(base_url=url, api_key="unused", model="quire-demo", check_embedding_ctx_length=False)
print(
    json.dumps(
        {
            "invoked": invoked.content,
            "usage": invoked.usage_metadata["total_tokens"],
            "streamed": "".join(chunk.content for chunk in streamed),
            "call": [call["name"], call["args"]],
            "streamed_call": [chunks.tool_calls[0]["name"], chunks.tool_calls[0]["args"]],
            "answered": isinstance(model.invoke(history).content, str),
            "structured": structured.model_dump(),
            "vector": len(vectors.embed_query("a cat")),
        }
    )
)
