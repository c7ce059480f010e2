"""Paged attention equals the contiguous formula, wherever pages lie, whatever other rows do and old bytes hold."""

from __future__ import annotations

import pytest
import torch

from quire.attention import select_backend
from quire.attention.interface import AttentionBatch
from quire.attention.reference import QUERY_BLOCK
from quire.base.errors import ConfigError

HEADS = ("multi-head", "grouped", "multi-query")
FEATURES = (
    "plain",
    "window",
    "window wider than the page",
    "softcap",
    "alibi",
    "alibi before scale",
    "window, softcap and alibi",
)
SHAPES = ("one token alone", "prefill", "decode", "later chunk", "mixed")


def assert_close(actual, expected, tolerance=2e-6):
    for row, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        difference = (ours.double() - theirs).abs().max().item()
        assert difference <= tolerance, f"row {row} differs by {difference}"


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rows", SHAPES)
def test_scattered_pages_give_what_contiguous_keys_give(backend, make_case, rows, features):
    """S14: prefill, decode, later chunks and a mix of them, with every feature of a layer."""
    case = make_case(rows=rows, features=features)
    assert_close(case.run(backend), case.expected())


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
def test_every_page_size_and_head_layout_gives_the_same(backend, make_case, heads, page_size):
    """S11, S14: contexts end inside, at and after the border of a page."""
    rows = [(1, page_size), (1, page_size + 1), (page_size + 3, page_size + 3), (2, 2 * page_size - 1)]
    case = make_case(heads=heads, rows=rows, page_size=page_size, features="window")
    assert_close(case.run(backend), case.expected())


def test_a_prompt_longer_than_a_block_of_queries_is_attended_whole(backend, make_case):
    """S36: block borders of the reference fall inside the prompt."""
    rows = [(QUERY_BLOCK + 9, QUERY_BLOCK + 20)]
    case = make_case(heads="multi-query", rows=rows, features="window, softcap and alibi")
    assert_close(case.run(backend), case.expected(), 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_pages_are_attended_in_float32(make_case, dtype):
    case = make_case(dtype=dtype)
    assert_close(case.run(select_backend("reference")), case.expected(), 8e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("features", ["plain", "window", "alibi"])
def test_the_place_of_pages_in_memory_does_not_matter(backend, make_case, features):
    """S12: two physical orders of the same pages give the same bits."""
    case = make_case(features=features)
    for one, other in zip(case.run(backend, order=1), case.run(backend, order=2), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("features", FEATURES)
def test_bytes_left_in_unused_places_never_show(backend, make_case, features):
    """SEC-35: pages full of NaN, and full of huge numbers, give the bits that zeroed pages give."""
    case = make_case(features=features)
    clean = case.run(backend, filler=0.0)
    for filler in (float("nan"), 1e30):
        for one, other in zip(clean, case.run(backend, filler=filler), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows", ["prefill", "decode", "mixed"])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(backend, make_case, rows, heads):
    """REL-15: white box, bit for bit; neighbours, their lengths and the order of rows leave no trace."""
    case = make_case(heads=heads, rows=rows)
    together = case.run(backend)
    for row in range(len(case.rows)):
        assert torch.equal(case.run(backend, chosen=[row])[0], together[row])
    backwards = list(range(len(case.rows)))[::-1]
    for row, result in zip(backwards, case.run(backend, chosen=backwards), strict=True):
        assert torch.equal(result, together[row])


def test_a_query_sees_its_own_token_and_none_after_it(backend, make_case):
    case = make_case(rows=[(4, 4)], heads="multi-head")
    before = case.run(backend)[0]
    case.keys[0][3] += 1.0
    case.values[0][3] += 1.0
    after = case.run(backend)[0]
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_layers_with_different_windows_share_one_plan(backend, make_case):
    """S14: alternating windows within a step (Gemma) do not disturb each other."""
    narrow, broad = make_case(features="window", rows=[(6, 6)]), make_case(features="plain", rows=[(6, 6)])
    batch = AttentionBatch(
        query_lens=[6],
        context_lens=[6],
        page_tables=torch.tensor([[1]], dtype=torch.int32),
        slot_mapping=torch.arange(16, 22),
        page_size=16,
    )
    plan = backend.plan(batch)
    for case in (narrow, broad, narrow):
        spec = case.spec
        kv = torch.full(backend.kv_shape(2, 16, spec.num_kv_heads, spec.head_dim), float("nan"))
        out = backend.run(case.queries[0], case.keys[0], case.values[0], kv=kv, spec=spec, plan=plan)
        assert_close([out], case.expected())


def test_a_batch_whose_counts_disagree_is_refused():
    batch = AttentionBatch(
        query_lens=[2],
        context_lens=[2],
        page_tables=torch.zeros(1, 1, dtype=torch.int32),
        slot_mapping=torch.zeros(3, dtype=torch.int64),
        page_size=16,
    )
    with pytest.raises(ValueError, match="2 queries but 3 slots"):
        select_backend("reference").plan(batch)


def test_a_plan_of_another_backend_is_refused(make_case):
    case = make_case()
    q = case.queries[0]
    with pytest.raises(TypeError, match="plan of object"):
        select_backend("reference").run(q, q, q, kv=q, spec=case.spec, plan=object())


@pytest.mark.parametrize("name", ["reference", "cpu", "cuda", "cuda:1"])
def test_a_backend_is_found_by_its_name_or_by_a_device(name):
    assert select_backend(name).kv_shape(5, 16, 2, 8) == (2, 5, 2, 16, 8)


def test_an_unknown_backend_is_refused_with_the_allowed_names():
    with pytest.raises(ConfigError, match="attention backend is 'flash'; allowed: reference, kernels, cpu, cuda"):
        select_backend("flash")
