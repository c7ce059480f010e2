"""Files and model fit together exactly, or loading fails and names the tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quire.attention import select_backend
from quire.base.errors import WeightError
from quire.layers.context import BuildContext
from quire.models.inspect import inspect_model
from quire.models.loader import build_model, load_model


def context(dtype=torch.float32):
    return BuildContext(
        dtype=dtype, device=torch.device("cpu"), attention=select_backend("reference"), max_model_len=64
    )


@pytest.fixture
def tensors(checkpoint_dir):
    """Random tensors for every slot of the small Llama in the directory, by checkpoint name."""
    info = inspect_model(checkpoint_dir.config().path, require_weights=False)
    torch.manual_seed(3)
    return {name: torch.randn(slot.shape) for name, slot in build_model(info, context()).weight_slots().items()}


def load(checkpoint_dir, tensors, *, dtype=torch.float32, progress=None):
    save_file(tensors, checkpoint_dir.path / "model.safetensors")
    return load_model(inspect_model(checkpoint_dir.path), context(dtype), progress=progress)


def test_every_weight_lands_where_its_name_says(checkpoint_dir, tensors):
    """S7: fused layers hold their parts, one after the other."""
    model = load(checkpoint_dir, tensors)
    fused = model.model.layers[1].self_attn.qkv_proj.weight
    parts = [tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(fused, torch.cat(parts))
    assert torch.equal(model.lm_head.table.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_converted_to_the_dtype_asked_for(checkpoint_dir, tensors, stored):
    """S79"""
    model = load(checkpoint_dir, {name: tensor.to(stored) for name, tensor in tensors.items()}, dtype=torch.bfloat16)
    expected = tensors["lm_head.weight"].to(stored).to(torch.bfloat16)
    assert torch.equal(model.lm_head.table.weight, expected)


def test_an_unused_tensor_is_an_error(checkpoint_dir, tensors):
    with pytest.raises(WeightError, match=r"1 tensors of the checkpoint have no place.*model\.layers\.0\.extra"):
        load(checkpoint_dir, tensors | {"model.layers.0.extra": torch.ones(2)})


def test_a_missing_tensor_is_an_error(checkpoint_dir, tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightError, match=r"1 weights .* not in the checkpoint: model\.layers\.1\.mlp\.up"):
        load(checkpoint_dir, tensors)


def test_a_long_list_of_wrong_tensors_is_cut(checkpoint_dir, tensors):
    extra = {f"x{i}": torch.ones(1) for i in range(30)}
    with pytest.raises(WeightError, match=r"30 tensors .*x0, x1, x10, x11, x12, and 25 more"):
        load(checkpoint_dir, tensors | extra)


def test_a_wrong_shape_names_tensor_found_and_expected(checkpoint_dir, tensors):
    tensors["model.norm.weight"] = torch.ones(33)
    with pytest.raises(WeightError, match=r"model\.norm\.weight .* has shape \[33\]; config\.json implies \[32\]"):
        load(checkpoint_dir, tensors)


def test_undeclared_quantized_weights_are_refused(checkpoint_dir, tensors):
    """S7: an integer tensor in a float's place is never silently converted."""
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    with pytest.raises(WeightError, match=r"model\.norm\.weight .* stored as I8"):
        load(checkpoint_dir, tensors)


def test_ignored_tensors_are_ignored_by_pattern_only(checkpoint_dir, tensors):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load(checkpoint_dir, tensors | {name: torch.ones(4)})
    with pytest.raises(WeightError, match="inv_freqs"):
        load(checkpoint_dir, tensors | {name + "s": torch.ones(4)})


def test_a_checkpoint_of_the_bare_decoder_fills_the_same_slots(checkpoint_dir, tensors):
    """S2: some checkpoints leave the leading "model." out."""
    model = load(checkpoint_dir, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"])


def test_one_slot_is_not_filled_twice(checkpoint_dir, tensors):
    with pytest.raises(WeightError, match=r"norm\.weight"):
        load(checkpoint_dir, tensors | {"norm.weight": torch.ones(32)})


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(checkpoint_dir, tensors):
    """S41: a stored copy of a tied head is redundant; one that differs contradicts config.json."""
    checkpoint_dir.config(tie_word_embeddings=True)
    del tensors["lm_head.weight"]
    model = load(checkpoint_dir, tensors)
    assert torch.equal(model.lm_head.table.weight, tensors["model.embed_tokens.weight"])
    load(checkpoint_dir, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    with pytest.raises(WeightError, match="tie_word_embeddings"):
        load(checkpoint_dir, tensors | {"lm_head.weight": torch.ones(64, 32)})


def test_shards_fill_one_model(checkpoint_dir, tensors):
    """S7"""
    names = sorted(tensors)
    weight_map = {name: f"{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, checkpoint_dir.path / file)
    checkpoint_dir.json("model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    model = load_model(inspect_model(checkpoint_dir.path), context())
    assert torch.equal(model.model.embed_tokens.table.weight, tensors["model.embed_tokens.weight"])


def test_progress_counts_bytes_up_to_the_whole(checkpoint_dir, tensors):
    """S4: the start-up report shows how far loading is."""
    calls = []
    load(checkpoint_dir, tensors, progress=lambda *call: calls.append(call))
    whole = sum(tensor.numel() * 4 for tensor in tensors.values())
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)
    assert calls[-1] == ("model.safetensors", whole, whole)
    assert len(calls) == len(tensors)


def test_a_file_that_changed_after_inspection_is_a_weight_error(checkpoint_dir, tensors):
    """SEC-7"""
    save_file(tensors, checkpoint_dir.path / "model.safetensors")
    info = inspect_model(checkpoint_dir.path)
    (checkpoint_dir.path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(WeightError, match=r"model\.safetensors"):
        load_model(info, context())


def anonymous_bytes():
    """Memory of this process that no file backs (mapped weight files do not count: they can be dropped)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_never_holds_the_weights_twice(checkpoint_dir):
    """S111: peak memory of loading is the model, not the model and its files."""
    rows = 100_000
    checkpoint_dir.config(vocab_size=rows, hidden_size=64)
    info = inspect_model(checkpoint_dir.path, require_weights=False)
    shapes = {name: slot.shape for name, slot in build_model(info, context()).weight_slots().items()}
    checkpoint_dir.tensors("model.safetensors", shapes)
    info, peaks, before = inspect_model(checkpoint_dir.path), [], anonymous_bytes()
    model = load_model(info, context(), progress=lambda *call: peaks.append(anonymous_bytes()))
    stored = (checkpoint_dir.path / "model.safetensors").stat().st_size
    assert model.lm_head.table.weight.shape == (rows, 64)
    assert max(peaks) - before < 1.2 * stored


@pytest.fixture
def fused_experts(checkpoint_dir):
    """Tensors of a small Mixtral whose experts are stored as one tensor per layer."""
    names = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    checkpoint_dir.config(**names, num_local_experts=2, num_experts_per_tok=1, sliding_window=None)
    model = build_model(inspect_model(checkpoint_dir.path, require_weights=False), context())
    alternatives = model.weight_alternatives()
    replaced = {name for slot in alternatives.values() for name in slot.fills}
    plain = {name: slot for name, slot in model.weight_slots().items() if name not in replaced}
    torch.manual_seed(5)
    return {name: torch.randn(slot.shape) for name, slot in (plain | alternatives).items()}


def test_a_tensor_that_stands_for_several_fills_them_all(checkpoint_dir, fused_experts):
    """S45: experts stored fused."""
    model = load(checkpoint_dir, fused_experts)
    name = next(name for name in fused_experts if name.endswith("layers.1.mlp.experts.gate_up_proj"))
    assert torch.equal(model.model.layers[1].mlp.experts.gate_up, fused_experts[name])


def test_a_weight_given_alone_and_within_another_is_an_error(checkpoint_dir, fused_experts):
    model = build_model(inspect_model(checkpoint_dir.path, require_weights=False), context())
    name, slot = next((name, slot) for name, slot in model.weight_slots().items() if ".experts.0." in name)
    with pytest.raises(WeightError, match=r"experts\.0"):
        load(checkpoint_dir, fused_experts | {name: torch.randn(slot.shape)})
