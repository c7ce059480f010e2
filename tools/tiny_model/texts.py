"""Held-out conversations with the replies that the corpus generator gives them, to measure perplexity on.

Knows: where a conversation's last reply begins. Does not know: who predicts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tools.tiny_model.corpus.mixture import held_episode
from tools.tiny_model.evaluate import EXACT_TASKS, OTHER_TASKS, SEED
from tools.tiny_model.heldout import Split
from tools.tiny_model.render import END, render


def held_out_lines(split: Split, per_task: int) -> Iterator[str]:
    """Yields a line of JSON per conversation, all tasks in turn: the prompt, and the last reply with its end."""
    for index in range(per_task):
        for task in EXACT_TASKS + OTHER_TASKS:
            episode = held_episode(task, split, SEED, index)
            prompt = render(episode.messages[:-1], episode.tools, True)
            whole = render(episode.messages, episode.tools, False)
            if not whole.startswith(prompt):
                raise RuntimeError(f"the template renders the reply of {task} {index} in another way than its prompt")
            reply, _, _ = whole[len(prompt) :].partition(END)
            yield json.dumps({"prompt": prompt, "completion": reply + END}, ensure_ascii=False)
