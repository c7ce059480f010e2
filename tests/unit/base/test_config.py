"""Settings: unknown ones are refused with the nearest name, aliases and presets fill the same fields."""

import pytest

from quire.base.config import EngineConfig, ModelConfig, ServerConfig
from quire.base.errors import ConfigError


def test_flat_options_reach_the_class_that_declares_them():
    """S48: the spelling of LLM(...) and of the flags."""
    config = EngineConfig.from_options(model="m", page_size=32, max_num_seqs=4)
    assert (config.model.model, config.cache.page_size, config.scheduler.max_num_seqs) == ("m", 32, 4)


def test_another_engines_spelling_is_accepted():
    """S48: --block-size is known to users."""
    assert EngineConfig.from_options(block_size=8).cache.page_size == 8
    with pytest.raises(ConfigError, match="given twice"):
        EngineConfig.from_options(block_size=8, page_size=8)


def test_an_unknown_option_names_the_nearest_known_one():
    """D9, D14: nothing is ignored."""
    with pytest.raises(ConfigError, match="did you mean max_model_len"):
        EngineConfig.from_options(max_model_length=5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("page_size", 12),
        ("dtype", "float8"),
        ("max_num_seqs", 0),
        ("max_model_len", True),
        ("priority_ageing_seconds", float("nan")),
        ("max_num_seqs", 2.5),
        ("max_num_seqs", "4"),
        ("enable_prefix_caching", "false"),
        ("debug", 1),
        ("model", 7),
        ("kv_cache_memory_bytes", "2 gallons"),
    ],
)
def test_values_out_of_range_are_refused(option, value):
    """S79: wrong settings are refused by name with what is allowed."""
    with pytest.raises(ConfigError, match=option):
        EngineConfig.from_options(**{option: value})


def test_a_preset_fills_only_what_was_not_given():
    """S81: two named presets; explicit settings win."""
    throughput = EngineConfig.from_options(preset="throughput", max_num_seqs=3)
    interactive = EngineConfig.from_options(preset="interactive")
    assert throughput.scheduler.max_num_seqs == 3
    assert throughput.scheduler.max_num_batched_tokens > interactive.scheduler.max_num_batched_tokens
    with pytest.raises(ConfigError, match="interactive, throughput"):
        EngineConfig.from_options(preset="fast")


def test_sizes_may_be_text_and_models_paths(tmp_path):
    """S48: what the help of the setting says holds for LLM(...) too."""
    config = EngineConfig.from_options(kv_cache_memory_bytes="1.5GiB", model=tmp_path)
    assert (config.cache.kv_cache_memory_bytes, config.model.model) == (3 * 2**29, str(tmp_path))


def test_a_lone_string_is_accepted_where_several_are_declared():
    config = EngineConfig.from_options(served_model_name="a")
    assert config.model.served_model_name == ("a",)


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises(AttributeError):
        ModelConfig().model = "other"


def test_a_root_path_has_a_slash_in_front_only():
    """S85: the base path is checked."""
    assert ServerConfig(root_path="/llm").root_path == "/llm"
    for bad in ("llm", "/llm/"):
        with pytest.raises(ConfigError, match="root_path"):
            ServerConfig(root_path=bad)
