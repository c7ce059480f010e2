"""The offline front: `LLM(model).generate(...)`, for scripts. The step loop runs in the caller's thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from quire.base import errors
from quire.base.config import BUILTIN_MODEL, EngineConfig
from quire.base.errors import EngineDeadError, InvalidRequestError
from quire.base.metrics import EngineStats
from quire.base.outputs import BeamSearchOutput, RequestOutput
from quire.base.sampling import BeamSearchParams, SamplingParams, as_list_of_params
from quire.engine.beam import beam_search
from quire.engine.build import build_core
from quire.engine.collector import RequestCollector
from quire.engine.interrupts import InterruptBetweenSteps
from quire.engine.messages import AbortMessage, AddMessage
from quire.engine.open_requests import failure_of
from quire.engine.requests import Prompt, RequestOptions, RequestPreparer, grammar_checker
from quire.text.chat import ChatTemplate
from quire.text.messages import ContentFormat, to_template_messages
from quire.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]


class LLM:
    """A model for offline use: prompts in, outputs out, all of them batched continuously.

    Takes the options of `quire serve` as keyword arguments (`max_model_len=2048`, `page_size=32`,
    `preset="throughput"`); without a model it runs the built-in one.

    Raises:
        ConfigError, UnsupportedModelError, WeightError: when the model cannot run as asked.
    """

    def __init__(self, model: str = BUILTIN_MODEL, **options: Any) -> None:
        config = EngineConfig.from_options(model=model, **options)
        self._core, self.info = build_core(config)
        self.tokenizer = Tokenizer.load(self.info.tokenizer_path)
        self.chat_template = ChatTemplate.load(self.info.tokenizer_path, override_path=config.model.chat_template)
        self._preparer = RequestPreparer(self.info, self.tokenizer)
        self._ids = itertools.count()
        self._grammars = grammar_checker(self.info)
        self._unusable: str | None = None
        self._is_stepping = False

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Sampling as the checkpoint's generation_config.json sets it."""
        return self.info.default_params()

    @property
    def stats(self) -> EngineStats:
        """The engine's counters and gauges."""
        self._check_open()
        return self._core.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Generate for one prompt or many; outputs come in the order of the prompts.

        `use_tqdm` draws a progress bar; something to call like tqdm draws its own. A prompt and max_tokens that exceed
        the model's length end at that length with finish reason `length`.

        Raises:
            InvalidRequestError: a prompt or its parameters cannot be honoured; nothing was run then.
            StepError, EngineDeadError: the engine failed while generating.
        """
        self._check_open()
        batch = _as_prompts(prompts)
        params = as_list_of_params(sampling_params, len(batch), self.get_default_sampling_params())
        if priority is not None and len(priority) != len(batch):
            raise InvalidRequestError(f"{len(priority)} priorities for {len(batch)} prompts", param="priority")
        collectors = []
        for i, (prompt, one) in enumerate(zip(batch, params, strict=True)):
            options = RequestOptions(priority=priority[i] if priority else 0, cache_salt=cache_salt, caps_length=True)
            prepared = self._preparer.prepare(prompt, one, request_id=str(next(self._ids)), options=options)
            if prepared.engine.grammar is not None:
                self._grammars.check(prepared.engine.grammar)
            collectors.append(RequestCollector(prepared, self.tokenizer))
        self._run(collectors, use_tqdm=use_tqdm)
        return [collector.take() for collector in collectors]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Generate the next message of one conversation or many, rendered by a chat template.

        `chat_template` is the text of a template to use instead of the model's; it runs in the same sandbox. Entries of
        `chat_template_kwargs` reach the template and override the arguments above that have their name.

        Raises:
            TemplateError: there is no chat template, or it refuses a conversation.
            InvalidRequestError, StepError, EngineDeadError: as `generate`.
        """
        template = self._template(chat_template)
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Messages] = [messages] if is_one else list(messages)  # type: ignore[list-item,arg-type]
        variables: dict[str, Any] = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        } | (chat_template_kwargs or {})
        prompts: list[Prompt] = []
        for conversation in conversations:
            rendered, _ = to_template_messages(
                conversation, template, tools=variables["tools"], content_format=chat_template_content_format
            )
            text = template.render(rendered, **variables)
            # The template wrote the special tokens already.
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The `beam_width` most likely continuations of each prompt, best first, as vLLM returns them.

        `tokens` and `text` of a sequence begin with its prompt, and `text` shows special tokens. Raises as `generate`.
        """
        self._check_open()
        return [beam_search(self, self._preparer.encode(prompt)[0], params) for prompt in _as_prompts(prompts)]

    def close(self) -> None:
        """Let go of the model and its memory; further calls raise EngineDeadError, except to close again."""
        self._give_up("this LLM was closed")

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _template(self, source: str | None) -> ChatTemplate:
        """The template of this text, or the model's own."""
        if source is not None:
            return ChatTemplate.from_source(source, self.info.tokenizer_path)
        if self.chat_template is None:
            name = self.info.served_names[0]
            raise errors.TemplateError(f"the model {name} has no chat template; give one, or use generate")
        return self.chat_template

    def _check_open(self) -> None:
        if self._unusable is not None:
            raise EngineDeadError(self._unusable)

    def _give_up(self, reason: str) -> None:
        if self._unusable is None:
            self._unusable = reason
            del self._core
            self._grammars.close()

    def _run(self, collectors: list[RequestCollector], *, use_tqdm: bool | Callable[..., Any]) -> None:
        open_requests = {collector.engine_id: collector for collector in collectors}
        self._core.inbox.put(AddMessage([collector.prepared.engine for collector in collectors]))
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        try:
            with (
                InterruptBetweenSteps() as interrupts,
                make_bar(total=len(open_requests), desc="generating", unit="req", disable=not use_tqdm) as bar,
            ):
                while open_requests:
                    self._step(open_requests, bar)
                    interrupts.check()
        except BaseException as error:
            self._abandon(open_requests, error)
            raise

    def _abandon(self, open_requests: dict[str, RequestCollector], error: BaseException) -> None:
        """Let the engine drop what is open. After a step that was torn apart nothing it holds can be relied on."""
        if self._is_stepping:
            self._give_up(f"this LLM is unusable since a call to it failed: {type(error).__name__}: {error}")
            return
        self._core.inbox.put(AbortMessage(list(open_requests)))
        while self._core.has_work:
            self._core.advance()

    def _step(self, open_requests: dict[str, RequestCollector], bar: Any) -> None:
        stopped: list[tuple[str, int]] = []
        self._is_stepping = True
        outputs = self._core.advance()
        self._is_stepping = False
        for output in outputs:
            collector = open_requests.get(output.request_id)
            if collector is None:
                continue
            if collector.push(output):
                stopped.append((output.request_id, output.index))
            if (failure := failure_of(collector.error)) is not None:
                raise failure
            if collector.is_finished:
                del open_requests[output.request_id]
                bar.update()
        if stopped:
            self._core.inbox.put(AbortMessage(samples=stopped))


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many as a list; a list of ints is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
