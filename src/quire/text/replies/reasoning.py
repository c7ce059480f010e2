"""How models mark their reasoning, and whether a prompt already opens it.

An opening mark counts only where no content precedes it: at the start of the reply, behind a call, behind earlier
reasoning. Reasoning ends at the first closing mark; calls within it are no calls. A block that is never closed is
reasoning to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.text.replies.trimmer import SPACE


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around reasoning."""

    opening: str
    closing: str

    def is_open_after(self, prompt: str, *, prefill: str = "") -> bool:
        """Whether a reply to this rendered prompt begins inside a block of reasoning.

        The prompt opens one when it ends with the opening mark, whitespace aside: marks further up may be anybody's
        words. `prefill` is the part of the reply that the prompt already holds (`continue_final_message`); it opens a
        block when its last mark is an opening one.
        """
        opened = prefill.rfind(self.opening)
        if opened >= 0:
            return opened > prefill.rfind(self.closing)
        return prompt.rstrip(SPACE).endswith(self.opening)


THINK = ReasoningFormat("<think>", "</think>")
MISTRAL = ReasoningFormat("[THINK]", "[/THINK]")
