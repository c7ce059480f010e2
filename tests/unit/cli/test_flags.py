import argparse
import dataclasses
import re

import pytest

from quire.base.config import PRESETS, EngineConfig, ServerConfig, option
from quire.base.errors import ConfigError
from quire.cli.flags import (
    ENGINE_PARTS,
    SERVER_PARTS,
    add_config_flags,
    add_engine_flags,
    flag_specs,
    parse_bytes,
    read_options,
    read_yaml,
    refuse_engine_flags,
)
from quire.cli.main import Parser


@pytest.fixture
def parse():
    """Parse a command line that has the flags of engine and server and a positional model."""

    def parse(*words: str) -> argparse.Namespace:
        parser = Parser(prog="quire test")
        parser.add_argument("positional_model", nargs="?")
        add_engine_flags(parser, with_server=True)
        return parser.parse_args(words)

    return parse


def test_every_setting_has_a_flag_with_its_own_help(parse, capsys):
    """S79, S84, S85: device, parallelism, memory, batch sizes, policy, routes, CORS and keys are settings.

    Those that few change have none, and stand in the file."""
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (ENGINE_PARTS | SERVER_PARTS).values():
        for field in dataclasses.fields(part):
            # As a whole word: one name may begin another, and a help text may name a flag.
            is_there = re.search(rf"--{field.name.replace('_', '-')}(?![\w-])", printed) is not None
            assert is_there == field.metadata["flag"], field.name
            assert (" ".join(field.metadata["help"].split()) in printed) == field.metadata["flag"], field.name


def test_no_flag_gives_the_defaults(parse, monkeypatch):
    """S4: nothing but the model needs to be said."""
    monkeypatch.delenv("QUIRE_API_KEY", raising=False)
    options = read_options(parse())
    assert options.engine_config() == EngineConfig()
    assert options.server_config() == ServerConfig()


def test_flags_reach_their_fields_in_their_types(parse):
    options = read_options(
        parse(
            *["some/dir", "--max-model-len", "512", "--kv-cache-memory-bytes", "64MiB", "--async-scheduling"],
            *["--no-enable-prefix-caching", "--priority-ageing-seconds", "2.5", "--port", "0", "--root-path", "/llm"],
            *["--device", "cpu", "--tensor-parallel-size", "1", "--max-num-seqs", "3", "--scheduling-policy", "fcfs"],
        )
    )
    engine, server = options.engine_config(), options.server_config()
    assert (engine.model.model, engine.model.max_model_len, engine.model.device) == ("some/dir", 512, "cpu")
    assert (engine.cache.kv_cache_memory_bytes, engine.cache.enable_prefix_caching) == (64 * 2**20, False)
    assert (engine.scheduler.max_num_seqs, engine.scheduler.scheduling_policy) == (3, "fcfs")
    assert (engine.scheduler.async_scheduling, engine.scheduler.priority_ageing_seconds) == (True, 2.5)
    assert (server.port, server.root_path) == (0, "/llm")


def test_a_spelling_users_know_from_elsewhere_sets_the_same_field(parse):
    assert read_options(parse("--block-size", "32")).engine_config().cache.page_size == 32


def test_lists_are_given_by_repetition_and_by_comma(parse):
    """S84, S85: several names, origins and routes."""
    options = read_options(parse("--served-model-name", "a,b", "--served-model-name", "c", "--allowed-origins", "x, y"))
    assert options.engine_config().model.served_model_name == ("a", "b", "c")
    assert options.server_config().allowed_origins == ("x", "y")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_sets_the_batch_and_an_explicit_flag_beats_it(parse, preset):
    """S81: two named presets change batch and chunk sizes."""
    config = read_options(parse("--preset", preset, "--max-num-seqs", "7")).engine_config()
    assert config.scheduler.max_num_seqs == 7
    assert config.scheduler.max_num_batched_tokens == PRESETS[preset]["max_num_batched_tokens"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2K", 2000), ("2KB", 2000), ("2KiB", 2048), ("1.5GiB", 3 * 2**29), ("3m", 3_000_000), ("2 GiB", 2**31)],
)
def test_sizes_are_read_with_suffixes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1X", "1e9", "nan", "1 2"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--port", "high"], "'high' is not a whole number"),
        (["--kv-cache-memory-bytes", "lots"], "'lots' is not a size"),
        (["--preset", "fast"], "invalid choice"),
    ],
)
def test_a_bad_value_ends_with_its_cause_as_the_last_line(parse, capsys, words, cause):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    assert cause in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_yaml_file_fills_the_same_fields_and_the_command_line_wins(parse, tmp_path):
    file = tmp_path / "quire.yaml"
    file.write_text(
        "model: some/dir\nmax-num-seqs: 4\npage_size: 64\nkv_cache_memory_bytes: 1GiB\nport: 9000\n"
        "served_model_name: [a, b]\nshutdown_timeout: 5\nenable_prefix_caching: false\npreset: throughput\n"
    )
    options = read_options(parse("--config", str(file), "--page-size", "32"))
    engine, server = options.engine_config(), options.server_config()
    assert (engine.model.model, engine.model.served_model_name) == ("some/dir", ("a", "b"))
    assert (engine.scheduler.max_num_seqs, engine.scheduler.max_num_batched_tokens) == (4, 4096)
    assert (engine.cache.page_size, engine.cache.kv_cache_memory_bytes) == (32, 2**30)
    assert engine.cache.enable_prefix_caching is False
    assert (server.port, server.shutdown_timeout) == (9000, 5.0)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("max_model_length: 4\n", "did you mean max_model_len"),
        ("port: high\n", "not a whole number"),
        ("port: 1.5\n", "port takes int"),
        ("enable_prefix_caching: 1\n", "enable_prefix_caching takes bool"),
        ("page_size: 16\nblock_size: 16\n", "given twice"),
        ("- 1\n", "name: value"),
        ("a: [\n", "cannot be read"),
        ("preset: fast\n", "allowed: interactive, throughput"),
        ("served_model_name: 5\n", "served_model_name takes"),
        ("api_key: [1, 2]\n", "api_key takes"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(parse, tmp_path, text, cause):
    file = tmp_path / "quire.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=cause) as refused:
        read_options(parse("--config", str(file))).engine_config()
    assert "preset" in text or str(file) in str(refused.value)


def test_a_missing_file_is_refused(parse, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_options(parse("--config", str(tmp_path / "none.yaml")))


def test_a_model_given_twice_is_refused(parse):
    with pytest.raises(ConfigError, match="given twice: a and --model b"):
        read_options(parse("a", "--model", "b"))


def test_keys_may_come_from_the_environment_and_flags_beat_it(parse, monkeypatch):
    """SEC-30: a key need not stand in the process list."""
    monkeypatch.setenv("QUIRE_API_KEY", "one,two")
    assert read_options(parse()).server_config().api_key == ("one", "two")
    assert read_options(parse("--api-key", "three")).server_config().api_key == ("three",)


def test_the_server_listens_on_loopback_unless_told_otherwise(parse):
    """SEC-31: the default bind is loopback."""
    assert read_options(parse()).server_config().host == "127.0.0.1"


def test_an_engine_flag_beside_a_url_is_refused_not_ignored(parse):
    with pytest.raises(ConfigError, match="--max-num-seqs sets up an engine of our own"):
        refuse_engine_flags(parse("--max-num-seqs", "3"))
    refuse_engine_flags(parse("--model", "m"), allowed=("model",))


def test_help_of_a_choice_names_what_is_allowed():
    assert "One of auto, cpu, cuda. Default: auto." in flag_specs(ENGINE_PARTS)["device"].help


def test_a_setting_without_a_flag_is_read_from_a_file_only(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Settings:
        """Settings of a test."""

        common: int = option(1, "Has a flag.")
        rare: int = option(1, "Has none.", flag=False)

    parser = Parser()
    add_config_flags(parser, {"settings": Settings})
    assert parser.parse_args(["--common", "2"]).common == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--rare", "2"])
    (tmp_path / "file.yaml").write_text("rare: 2\n")
    assert read_yaml(tmp_path / "file.yaml", {"settings": Settings}) == {"rare": 2}
