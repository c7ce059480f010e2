"""How hard a model shall think, in its own template's words: some read an effort, some have a switch, some nothing.

Nothing is refused for it: clients send an effort to whatever model they talk to, and what had no effect is noted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.protocol.common import Effort

if TYPE_CHECKING:
    from quire.text.template_traits import TemplateTraits

_DEFAULT = "medium"


def effort_arguments(effort: Effort | None, traits: TemplateTraits) -> tuple[dict[str, Any], list[str]]:
    """The template's arguments for an effort, and notes on what of it had no effect."""
    if effort is None:
        return {}, []
    if traits.reads_effort:
        return {"reasoning_effort": effort}, []
    if traits.thinking_switch is not None:
        notes = []
        if effort not in ("none", _DEFAULT):
            notes.append("reasoning effort: the model's template only turns reasoning on and off; it is on")
        return {traits.thinking_switch: effort != "none"}, notes
    if effort == "none" and traits.reasoning_format == "none":
        return {}, []
    return {}, ["reasoning effort: the model's template has no setting for it; the field had no effect"]
