"""Greedy replies from quire itself, for the final evaluation.

Knows: quire's Python interface. Does not know: tasks and scores.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tools.tiny_model.generate import Prompt, Reply

from quire import LLM, SamplingParams


class QuireChat:
    """Answers with the exported model, served by quire."""

    def __init__(self, folder: Path) -> None:
        self._llm = LLM(str(folder))

    def replies(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply]:
        """Returns one reply to every prompt, in order; prompts of the same tools go in one call."""
        by_tools: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            by_tools[json.dumps(prompt.tools)].append(index)
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        found: dict[int, Reply] = {}
        for indices in by_tools.values():
            conversations = [list(prompts[i].messages) for i in indices]
            tools = list(prompts[indices[0]].tools) or None
            results = self._llm.chat(conversations, params, tools=tools, use_tqdm=False)
            for index, result in zip(indices, results, strict=True):
                output = result.outputs[0]
                found[index] = Reply(output.text, output.finish_reason == "stop")
        return [found[i] for i in range(len(prompts))]
