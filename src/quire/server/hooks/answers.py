"""Answers on their way through the filters of hooks, between the engine and the reply of whichever API it is.

Each choice is read as events first, so that a filter sees content, reasoning and the arguments of calls apart and never
a format's markup, and the reply gets the events that are left. What a filter holds back is in the filter and nowhere
else; a choice that one stops is ended in the engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from quire.base.outputs import CompletionOutput, RequestOutput
from quire.base.pooling import PoolingParams
from quire.base.sampling import SamplingParams
from quire.server.chat_sample import EventReader, FilteredOutput, ReplyStyle, merged
from quire.server.generation import Generation, GenerationOptions
from quire.server.hooks.contract import Part, Stop
from quire.server.hooks.hook_set import HookSet, NamedFilter
from quire.server.prompts import Prompt
from quire.server.samples import CONTENT_FILTER
from quire.text.replies.events import ArgumentsText, CallBegun, CallEnded, ContentText, Event, ReasoningText

_CONTENT, _REASONING = Part("content"), Part("reasoning")


class FilteredChoice:
    """One choice and the filters it goes through."""

    def __init__(self, hooks: HookSet, filters: Sequence[NamedFilter], style: ReplyStyle) -> None:
        self.is_stopped = False
        """A filter ended it; nothing may be passed on any more."""
        self._hooks = hooks
        self._filters = filters
        self._reader = EventReader(style)
        self._part: Part | None = None
        self._call: int | None = None
        """The call whose name was shown and whose end was not."""
        self._shown: list[Event] = []

    async def pass_on(self, output: CompletionOutput) -> FilteredOutput:
        """What is left of a delta.

        Raises:
            HookRejectedError: a filter ends the answer. HookFailedError, HookTimeoutError: one did not answer.
        """
        ends = output.finish_reason is not None
        for event in self._reader.read(output, ends=ends):
            if not self.is_stopped:
                await self._pass_event(event)
        if ends and not self.is_stopped:
            await self._end_part()
        shown, self._shown = merged(self._shown), []
        return FilteredOutput(
            index=output.index,
            text="".join(event.text for event in shown if isinstance(event, ContentText)),
            token_ids=output.token_ids,
            finish_reason=CONTENT_FILTER if self.is_stopped else output.finish_reason,
            stop_reason=None if self.is_stopped else output.stop_reason,
            events=shown,
            reasoning_tokens=self._reader.reasoning_tokens,
        )

    async def _pass_event(self, event: Event) -> None:
        match event:
            case ContentText(text):
                await self._pass_text(_CONTENT, text)
            case ReasoningText(text):
                await self._pass_text(_REASONING, text)
            case CallBegun(index, name):
                await self._begin_call(index, name)
            case ArgumentsText(_, text):
                assert self._part is not None
                await self._pass_text(self._part, text)
            case CallEnded():
                await self._end_part()
                if not self.is_stopped:
                    self._call = None
                    self._shown.append(event)

    async def _pass_text(self, part: Part, text: str) -> None:
        if part != self._part:
            await self._end_part()
            if self.is_stopped:
                return
            self._part = part
        self._show(part, await self._filtered(part, text))

    async def _begin_call(self, index: int, name: str) -> None:
        await self._end_part()
        if self.is_stopped:
            return
        self._part = part = Part("tool_arguments", name)
        text = await self._filtered(part, "", is_begun=True)
        if not self.is_stopped:
            self._call = index
            self._shown.append(CallBegun(index, name))
            self._show(part, text)

    async def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._show(part, await self._filtered(part, "", ends=True))

    def _show(self, part: Part, text: str) -> None:
        """Show what came through, and the end of a call in which a filter stopped."""
        if text and part.kind == "content":
            self._shown.append(ContentText(text))
        elif text and part.kind == "reasoning":
            self._shown.append(ReasoningText(text))
        elif text and self._call is not None:
            self._shown.append(ArgumentsText(self._call, text))
        if self.is_stopped and self._call is not None:
            self._shown.append(CallEnded(self._call, is_complete=False))
            self._call = None

    async def _filtered(self, part: Part, text: str, *, is_begun: bool = False, ends: bool = False) -> str:
        """What comes out behind the last filter.

        When one stops the choice, those behind it let go of what they hold: it was let through by those before them.
        """
        for entry in self._filters:
            if not (text or is_begun or ends):
                break
            shown: str = ""
            said: str | Stop = ""
            if text or is_begun:
                said = await self._hooks.ask(entry.name, entry.filter.push, part, text)
            if ends and isinstance(said, str):
                shown, said = said, await self._hooks.ask(entry.name, entry.filter.end, part)
            if isinstance(said, Stop):
                self.is_stopped = ends = True
                said = said.text
            text = shown + said
        return text


class FilteredGeneration(Generation):
    """A generation whose choices go through filters, one list of them for each choice."""

    def __init__(
        self, plain: Generation, hooks: HookSet, filters: Sequence[Sequence[NamedFilter]], style: ReplyStyle
    ) -> None:
        super().__init__(plain.engine, prefix=plain.prefix, ticket=plain.ticket)
        self._choices = [FilteredChoice(hooks, choice, style) for choice in filters]
        self._num_samples = 1

    async def submit(
        self, prompts: Sequence[Prompt], params: SamplingParams | PoolingParams, options: GenerationOptions
    ) -> None:
        """Queue every prompt, or none; raises what the engine does."""
        self._num_samples = params.n if isinstance(params, SamplingParams) else 1
        await super().submit(prompts, params, options)

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """What filters let through, until every choice ended or was stopped; raises their errors and the engine's."""
        open_choices = set(range(len(self._choices)))
        async with contextlib.aclosing(super().outputs()) as outputs:
            async for prompt_index, output in outputs:
                first = prompt_index * self._num_samples
                passed: list[CompletionOutput] = []
                for delta in output.outputs:
                    if first + delta.index not in open_choices:
                        continue  # the engine had not heard yet that it was stopped
                    shown = await self._choices[first + delta.index].pass_on(delta)
                    passed.append(shown)
                    if shown.finish_reason is not None:
                        open_choices.discard(first + delta.index)
                    if shown.finish_reason == CONTENT_FILTER:
                        self.end_sample(prompt_index, delta.index)
                yield prompt_index, replace(output, outputs=passed)
                if not open_choices:
                    return
