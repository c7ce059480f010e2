"""LiteLLM against the server at argv[1]; prints what came back as JSON."""

import json
import sys

import litellm

fields = {
    "model": "openai/quire-demo",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "unused",
    "messages": [{"role": "user", "content": "Hello!"}],
    "temperature": 0,
    "max_tokens": 48,
}
whole = litellm.completion(**fields)
chunks = list(litellm.completion(**fields, stream=True))
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "usage": whole.usage.total_tokens,
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            "finish": chunks[-1].choices[0].finish_reason,
        }
    )
)
