"""Plug-ins end to end: one module of the operator adds an architecture, a sampler and a policy to a real engine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PLUGIN = """
from quire.models.families import FamilyEntry
from quire.models.llama import LlamaForCausalLM
from quire.models.readers import read_llama
from quire.models.registry import register_architecture
from quire.runner.logits_processor import register_logits_processor
from quire.scheduler.queues import register_policy

NUM_BUILT = []


class MyForCausalLM(LlamaForCausalLM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        NUM_BUILT.append(1)


class OnlyThis:
    def is_active(self, params):
        return params.seed == 7

    def apply(self, logits, rows):
        forced = logits.new_full(logits.shape, float("-inf"))
        forced[:, 42] = 0.0
        return forced


register_architecture("MyForCausalLM", FamilyEntry("Mine", __name__, "MyForCausalLM", read_llama))
register_logits_processor("only-this", lambda vocab_size: OnlyThis())
register_policy("shortest-prompt", lambda limits: lambda request: request.num_prompt_tokens)
"""

SCRIPT = """
import json
import sys
from quire import LLM, SamplingParams

options = dict(plugins=["our_plugin"], scheduling_policy="shortest-prompt", max_num_seqs=1, max_model_len=256)
with LLM(sys.argv[1], **options) as llm:
    import our_plugin
    forced = SamplingParams(seed=7, max_tokens=4, ignore_eos=True)
    free = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    long, short, middle = llm.generate([[5] * 60, [5] * 3, [5] * 20], [free, forced, free], use_tqdm=False)
    started = sorted(("long", "short", "middle"), key=lambda name: globals()[name].metrics.first_token_time)
    print(json.dumps([our_plugin.NUM_BUILT, short.outputs[0].token_ids, long.outputs[0].token_ids, started]))
"""


def test_a_plug_in_adds_an_architecture_a_sampler_and_a_policy_to_a_running_engine(demo_path, tmp_path):
    """S87: all three points, in one engine, loaded by the name the operator gives."""
    model = tmp_path / "model"
    shutil.copytree(demo_path, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["MyForCausalLM"]}))
    (tmp_path / "our_plugin.py").write_text(PLUGIN)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    built, forced, free, started = json.loads(done.stdout)
    assert built == [1]
    assert forced == [42] * 4 and free != forced
    assert started == ["short", "middle", "long"]


def test_the_document_tells_of_all_three_points():
    """S87: what the test above uses is what docs/plugins.md describes."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name in ("register_architecture", "register_logits_processor", "register_policy", "--plugins"):
        assert name in text
