import sys

import pytest

from quire.base.errors import ConfigError
from quire.bench.paging import (
    AttentionShape,
    _decode,
    _request,
    allocator_seconds,
    describe,
    run_paging,
)
from quire.cache.manager import KVCacheManager


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_page_size_attends_like_contiguous_memory_and_is_timed_beside_it(dtype):
    """S24, S25: one run times paged and contiguous steps at equal shapes, for every page size."""
    shape = AttentionShape(rows=3, context=70, num_heads=4, num_kv_heads=2, head_dim=16, dtype=dtype)
    result = run_paging(shape, (8, 16, 32, 64), rounds=2, max_seconds=20)
    assert [one.page_size for one in result.sizes] == [8, 16, 32, 64]
    for one in result.sizes:
        assert one.largest_difference < (1e-5 if dtype == "float32" else 5e-2)
        assert one.ratio > 0
        assert one.pages_per_request == -(-70 // one.page_size)
        assert one.wasted_tokens < one.page_size
    assert "ratio" in describe(result)


@pytest.mark.parametrize("bad", [{"rows": 0}, {"context": 1}, {"num_heads": 3, "num_kv_heads": 2}])
def test_shapes_attention_does_not_have_are_refused(bad):
    with pytest.raises(ConfigError):
        AttentionShape(**bad)


def test_the_allocators_work_per_step_is_reported_and_does_not_grow_with_the_context():
    """S23: a decode step makes as many calls for requests of 4,096 tokens as for requests of 64."""

    def calls(context):
        count = 0

        def note(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        rows = 4
        cache = KVCacheManager(rows * (context // 16 + 2), 16)
        requests = [_request(row, context) for row in range(rows)]
        for request in requests:
            assert cache.allocate(request, context)
            request.num_computed_tokens = context
            cache.commit(request, context)
        sys.setprofile(note)
        try:
            for _ in range(16):
                _decode(cache, requests)
        finally:
            sys.setprofile(None)
        return count

    assert calls(4096) == calls(64)
    assert allocator_seconds(2, 64, 16, rounds=2) > 0
