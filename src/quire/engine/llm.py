"""The offline front: `LLM(model).generate(...)`, `.embed(...)` and their kin, for scripts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from quire.base import errors
from quire.base.config import BUILTIN_MODEL, EngineConfig
from quire.base.errors import InvalidRequestError, StepError
from quire.base.metrics import EngineStats
from quire.base.outputs import BeamSearchOutput, RequestOutput
from quire.base.pooling import PoolingModel, PoolingParams, Task, from_bytes
from quire.base.sampling import BeamSearchParams, SamplingParams, as_list_of_params
from quire.base.scores import activated
from quire.base.vectors import ClassificationOutput, EmbeddingOutput, PoolingOutput, ScoringOutput, VectorRequestOutput
from quire.engine.beam import beam_search
from quire.engine.build import build_core
from quire.engine.collector import RequestCollector
from quire.engine.core import EngineCore
from quire.engine.offline import OfflineEngine, ProgressBar
from quire.engine.requests import Prompt, RequestOptions, RequestPreparer, grammar_checker
from quire.engine.scoring import pair_up, plan_scoring
from quire.text.chat import ChatTemplate
from quire.text.messages import ContentFormat, to_template_messages
from quire.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
T = TypeVar("T")


class LLM:
    """A model for offline use: prompts in, outputs out, all of them batched continuously.

    Takes the options of `quire serve` as keyword arguments (`max_model_len=2048`, `page_size=32`,
    `preset="throughput"`); without a model it runs the built-in one.

    Raises:
        ConfigError, UnsupportedModelError, WeightError: when the model cannot run as asked.
    """

    def __init__(self, model: str = BUILTIN_MODEL, **options: Any) -> None:
        config = EngineConfig.from_options(model=model, **options)
        core, self.info = build_core(config)
        self._engine = OfflineEngine(core)
        self.tokenizer = Tokenizer.load(self.info.tokenizer_path)
        self.chat_template = ChatTemplate.load(self.info.tokenizer_path, override_path=config.model.chat_template)
        self._preparer = RequestPreparer(self.info, self.tokenizer)
        self._ids = itertools.count()
        self._grammars = grammar_checker(self.info)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Sampling as the checkpoint's generation_config.json sets it."""
        return self.info.default_params()

    @property
    def stats(self) -> EngineStats:
        """The engine's counters and gauges."""
        return self._core.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: ProgressBar = True,
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
        _ = self._core  # before anything is prepared for an engine that is gone
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
        self._engine.run(collectors, use_tqdm=use_tqdm, verb="generating")
        return [collector.take() for collector in collectors]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: ProgressBar = True,
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
        _ = self._core
        return [beam_search(self, self._preparer.encode(prompt)[0], params) for prompt in _as_prompts(prompts)]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: ProgressBar = True,
    ) -> list[VectorRequestOutput[PoolingOutput]]:
        """Each prompt's numbers as the model gives them: its embedding, or a logit per label. Raises as `generate`."""
        batch = [(prompt, RequestOptions()) for prompt in _as_prompts(prompts)]
        outputs = self._read(batch, pooling_params, use_tqdm=use_tqdm)
        return [_with(output, PoolingOutput(from_bytes(_vector_of(output)))) for output in outputs]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: ProgressBar = True,
    ) -> list[VectorRequestOutput[EmbeddingOutput]]:
        """Each prompt's embedding, in the order of the prompts; raises as `generate`."""
        self._model_for("embed")
        encoded = self.encode(prompts, pooling_params, use_tqdm=use_tqdm)
        return [_with(output, EmbeddingOutput(output.outputs.data)) for output in encoded]

    def classify(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: ProgressBar = True
    ) -> list[VectorRequestOutput[ClassificationOutput]]:
        """Each prompt's probability of every label; the labels' names are in `info.pooling`. Raises as `generate`."""
        activation = self._model_for("classify").activation
        encoded = self.encode(prompts, use_tqdm=use_tqdm)
        return [_with(output, ClassificationOutput(activated(output.outputs.data, activation))) for output in encoded]

    def score(
        self, first: str | Sequence[str], second: str | Sequence[str], *, use_tqdm: ProgressBar = True
    ) -> list[VectorRequestOutput[ScoringOutput]]:
        """How well texts fit: one with each of several, or two lists text by text.

        A cross-encoder reads both texts at once; an embedding model reads each, and the score is the cosine of the two
        embeddings. Pairs and texts longer than the model are cut as in its training. Raises as `generate`.
        """
        plan = plan_scoring(pair_up(first, second, names=("first", "second")), self.info.pooling)
        prompts = plan.prompts(self.tokenizer, max_tokens=self.info.max_model_len)
        batch = [(prompt.token_ids, RequestOptions(second_segment=prompt.second_segment)) for prompt in prompts]
        outputs = self._read(batch, None, use_tqdm=use_tqdm)
        scores = plan.scores([_vector_of(output) for output in outputs])
        return [
            VectorRequestOutput(request_id=str(next(self._ids)), prompt_token_ids=ids, outputs=ScoringOutput(score))
            for ids, score in zip(plan.ids_of_pairs(prompts), scores, strict=True)
        ]

    def close(self) -> None:
        """Let go of the model and its memory; further calls raise EngineDeadError, except to close again."""
        self._engine.give_up("this LLM was closed")
        self._grammars.close()

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

    @property
    def _core(self) -> EngineCore:
        return self._engine.core

    def _model_for(self, task: Task) -> PoolingModel:
        """The model as one that pools for this task; raises InvalidRequestError where it does something else."""
        model = self.info.pooling
        if model is None or model.task != task:
            serves = "generate" if model is None else model.task
            name = self.info.served_names[0]
            raise InvalidRequestError(
                f"the model {name} does not {task}; it serves {serves}", param="model", code="unsupported_task"
            )
        return model

    def _read(
        self,
        batch: Sequence[tuple[Prompt, RequestOptions]],
        params: PoolingParams | None,
        *,
        use_tqdm: ProgressBar,
    ) -> list[RequestOutput]:
        """What became of prompts that end with vectors."""
        _ = self._core
        collectors = []
        for prompt, options in batch:
            name, wanted = str(next(self._ids)), params or PoolingParams()
            prepared = self._preparer.prepare(prompt, wanted, request_id=name, options=options)
            collectors.append(RequestCollector(prepared, self.tokenizer))
        self._engine.run(collectors, use_tqdm=use_tqdm, verb="reading")
        return [collector.take() for collector in collectors]


def _vector_of(output: RequestOutput) -> bytes:
    if output.pooled is None:
        raise StepError("the engine ended a request before its vector was complete")
    return output.pooled


def _with(source: RequestOutput | VectorRequestOutput[Any], outputs: T) -> VectorRequestOutput[T]:
    """What is known of a prompt, with these outputs."""
    return VectorRequestOutput(
        request_id=source.request_id,
        prompt_token_ids=source.prompt_token_ids,
        outputs=outputs,
        num_cached_tokens=source.num_cached_tokens,
    )


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many as a list; a list of ints is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
