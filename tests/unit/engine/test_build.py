"""What the assembly line decides by itself: whose packed weights are kept."""

from types import SimpleNamespace

import pytest

from quire import EngineConfig
from quire.engine.build import _weight_cache

INFO = SimpleNamespace(implementation="native")
RESOLVED = SimpleNamespace(device="cpu")


def test_packed_weights_are_kept_in_the_folder_that_was_named(tmp_path):
    config = EngineConfig.from_options(weight_cache=str(tmp_path))
    assert _weight_cache(config, INFO, RESOLVED).folder == tmp_path


@pytest.mark.parametrize(
    ("options", "info", "resolved"),
    [
        ({"weight_cache": "none"}, INFO, RESOLVED),
        ({"plugins": ("a_plugin",)}, INFO, RESOLVED),
        ({}, SimpleNamespace(implementation="adapter"), RESOLVED),
        ({}, INFO, SimpleNamespace(device="cuda")),
    ],
    ids=["switched off", "plugins", "adapter", "another device"],
)
def test_weights_are_kept_only_where_our_own_code_alone_decides_what_they_become(options, info, resolved):
    assert _weight_cache(EngineConfig.from_options(**options), info, resolved) is None
