"""Beam search over the engine: each round asks for one more token of every beam, with its most likely alternatives.

Every beam's prefix is in the prefix cache, so a round computes little more than one token per beam. Scores follow the
usual length normalisation (Wu et al., 2016, with the simple power form): sum of log-probabilities / length ** penalty,
where length counts as in vLLM: prompt and continuation, without a final end of sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire.base.errors import ContextLengthError
from quire.base.outputs import BeamSearchOutput, BeamSearchSequence, Logprob
from quire.base.sampling import ALL_LOGPROBS, BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from quire.engine.llm import LLM


@dataclass(slots=True)
class _Beam:
    tokens: list[int]
    """Prompt and continuation."""
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cum_logprob: float = 0.0
    finish_reason: str | None = None


def beam_search(llm: LLM, prompt_ids: list[int], params: BeamSearchParams) -> BeamSearchOutput:
    """The `beam_width` best continuations of one prompt, best first.

    Raises:
        ContextLengthError: prompt and max_tokens exceed the model's length.
    """
    if len(prompt_ids) + params.max_tokens > llm.info.max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens and {params.max_tokens} more were requested; the model's maximum "
            f"context length is {llm.info.max_model_len} tokens",
            param="max_tokens",
        )
    beams, finished = [_Beam(list(prompt_ids))], list[_Beam]()
    for _ in range(params.max_tokens):
        candidates = _extend(llm, beams, params)
        stop_ids = () if params.ignore_eos else llm.info.eos_token_ids
        for candidate in candidates:
            if candidate.tokens[-1] in stop_ids:
                candidate.finish_reason = "stop"
        ended = [candidate for candidate in candidates if candidate.finish_reason]
        finished += ended
        alive = [candidate for candidate in candidates if not candidate.finish_reason]
        beams = sorted(alive, key=lambda beam: -beam.cum_logprob)[: params.beam_width]
        if not beams:
            break
    for beam in beams:
        beam.finish_reason = "length"
    ends = llm.info.eos_token_ids
    best = sorted(
        finished + beams,
        key=lambda beam: -score(beam.cum_logprob, len(beam.tokens) - (beam.tokens[-1] in ends), params.length_penalty),
    )
    return BeamSearchOutput(sequences=[_describe(llm, beam) for beam in best[: params.beam_width]])


def score(cum_logprob: float, length: int, length_penalty: float) -> float:
    """Rank of a beam: log-probability per token ** penalty; higher is better."""
    return cum_logprob / float(length**length_penalty)


def _extend(llm: LLM, beams: list[_Beam], params: BeamSearchParams) -> list[_Beam]:
    """Every beam with each of its 2 x width most likely next tokens (twice, so that ends of sequence leave enough)."""
    width = min(2 * params.beam_width, llm.info.vocab_rows)
    is_tempered = params.temperature not in (0.0, 1.0)
    wanted = ALL_LOGPROBS if is_tempered else width  # another temperature changes every token's normalisation
    one = SamplingParams(max_tokens=1, temperature=0.0, logprobs=wanted, detokenize=False, ignore_eos=True)
    outputs = llm.generate([beam.tokens for beam in beams], one, use_tqdm=False)
    candidates = []
    for beam, output in zip(beams, outputs, strict=True):
        entries = (output.outputs[0].logprobs or [{}])[0]
        logprobs = {token: entry.logprob for token, entry in entries.items()}
        if is_tempered:
            logprobs = tempered(logprobs, params.temperature)
        likely = sorted(logprobs.items(), key=lambda item: -item[1])[:width]
        history = [*beam.logprobs, {token: entries[token] for token, _ in likely}]
        candidates += [_Beam([*beam.tokens, token], history, beam.cum_logprob + logprob) for token, logprob in likely]
    return candidates


def tempered(logprobs: dict[int, float], temperature: float) -> dict[int, float]:
    """Log-probabilities of a whole vocabulary at another temperature: log softmax(logprobs / temperature)."""
    scaled = {token: logprob / temperature for token, logprob in logprobs.items()}
    top = max(scaled.values())
    log_sum = top + math.log(sum(math.exp(value - top) for value in scaled.values()))
    return {token: value - log_sum for token, value in scaled.items()}


def _describe(llm: LLM, beam: _Beam) -> BeamSearchSequence:
    return BeamSearchSequence(
        tokens=beam.tokens,
        cum_logprob=beam.cum_logprob,
        logprobs=beam.logprobs,
        text=llm.tokenizer.decode(beam.tokens, skip_special_tokens=False),
        finish_reason=beam.finish_reason,
    )
