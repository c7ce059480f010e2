"""The whole engine against transformers: `LLM` on tiny checkpoints of every family, prompts cut to 16 tokens a step.

`test_parity.py` compares models through a driver of its own; here scheduler, cache, runner and sampler are in between,
and prompt and output log-probabilities are the ones users get.
"""

import pytest
import torch

from quire import LLM, SamplingParams

NUM_NEW = 64
TOLERANCE = 1e-3
TIE = 1e-4
GQA = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
WINDOW = {"sliding_window": 24}
GEMMA = GQA | WINDOW | {"num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 24}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama with yarn": ("llama", GQA | {"rope_parameters": YARN, "max_position_embeddings": 272}),
    "mistral with a window": ("mistral", GQA | WINDOW),
    "qwen3": ("qwen3", GQA | {"head_dim": 16}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}),
    "mixtral": ("mixtral", GQA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "falcon": ("falcon", {k: v for k, v in GQA.items() if k not in ("intermediate_size", "num_key_value_heads")}),
    "gpt-neox": ("gpt_neox", {k: v for k, v in GQA.items() if k != "num_key_value_heads"} | {"hidden_size": 64}),
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 512}),
    "olmo2 through the adapter": ("olmo2", GQA),
}


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_generates_and_scores_what_transformers_does(harness, all_prompts, demo_path, family, page_size):
    """S36, S41, S42, S43, S44, S45, REL-16: 20 prompts x 64 greedy steps, 16 tokens a step, every position."""
    model_type, config = FAMILIES[family]
    path = harness.checkpoint(model_type, **config)
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=4, prompt_logprobs=2, detokenize=False
    )
    options = {"page_size": page_size, "max_num_batched_tokens": 16, "max_num_seqs": 8, "max_model_len": 264}
    with LLM(str(path), tokenizer=demo_path, dtype="float32", **options) as llm:
        outputs = llm.generate(all_prompts, params, use_tqdm=False)
    sequences = [output.prompt_token_ids + output.outputs[0].token_ids for output in outputs]
    for output, sequence, logits in zip(outputs, sequences, harness.reference_logits(path, sequences), strict=True):
        assert len(output.outputs[0].token_ids) == NUM_NEW
        theirs = logits.log_softmax(-1)
        ours = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        for position, entry in enumerate(ours):
            tokens = list(entry)
            found = torch.tensor([entry[token].logprob for token in tokens])
            assert (found - theirs[position, tokens]).abs().max() < TOLERANCE
        for position in range(len(output.prompt_token_ids), len(sequence)):
            row = logits[position - 1]
            assert row.max() - row[sequence[position]] <= TIE
