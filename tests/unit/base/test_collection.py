"""Imports without garbage collection, and what they leave behind without it as well."""

import gc

import pytest

from quire.base.collection import uncollected


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_inside_and_everything_as_before_outside():
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_what_was_made_inside_is_left_out_of_later_collections():
    gc.unfreeze()
    with uncollected():
        made = [[number] for number in range(1000)]
    assert gc.get_freeze_count() >= len(made)


def test_a_failed_import_leaves_the_collector_on():
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
