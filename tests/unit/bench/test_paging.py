import pytest

from quire.base.errors import ConfigError
from quire.bench.paging import AttentionShape, describe, run_paging


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
