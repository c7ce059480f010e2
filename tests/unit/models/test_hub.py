"""A model's name becomes a directory; a path never touches the network, a hub id works from the local cache."""

import sys

import pytest

from quire.base.errors import ConfigError
from quire.models.hub import locate_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A local hub cache that holds org/tiny, with the network switched off."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    return tmp_path


def test_a_directory_is_used_as_it_is_without_the_hub_library(tmp_path, monkeypatch):
    """S78: a local path never touches the network."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would now fail
    assert locate_model(str(tmp_path)) == tmp_path


def test_the_built_in_demo_is_found():
    """S78"""
    assert (locate_model("quire-demo") / "config.json").is_file()


def test_a_hub_id_works_from_the_local_cache_without_a_network(hub_cache):
    """S78"""
    assert (locate_model("org/tiny") / "config.json").read_text() == "{}"


def test_a_hub_id_that_is_not_cached_says_so_without_a_network(hub_cache):
    """S78"""
    with pytest.raises(ConfigError, match="neither a local directory nor in the local hub cache"):
        locate_model("org/absent")


def test_a_hub_id_without_the_hub_library_says_how_to_install_it(monkeypatch):
    """S78"""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'quire\[hf\]'"):
        locate_model("org/name")


def test_only_safetensors_and_text_files_are_fetched(monkeypatch):
    """SEC-3, SEC-5: pickles and Python files of a repository never arrive."""
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def fake(model, *, revision, allow_patterns, ignore_patterns):
        asked.update(model=model, revision=revision, allow=allow_patterns, ignore=ignore_patterns)
        return "somewhere"

    monkeypatch.setattr(hub, "snapshot_download", fake)
    locate_model("org/name", revision="v1")
    assert (asked["model"], asked["revision"]) == ("org/name", "v1")
    files = ["config.json", "a.safetensors", "chat_template.jinja", "tokenizer.model", "modeling.py", "w.bin", "w.pth",
             "original/w.safetensors", "consolidated.safetensors"]  # fmt: skip
    filter_files = pytest.importorskip("huggingface_hub.utils").filter_repo_objects
    kept = filter_files(files, allow_patterns=asked["allow"], ignore_patterns=asked["ignore"])
    assert list(kept) == files[:4]
    locate_model("org/name", weights=False)
    assert "*.safetensors" not in asked["allow"]


@pytest.mark.parametrize("model", ["nowhere", "./a/b", "/not/here", "a/b/c", "../x", "org/..", "https://x/y", "", "~~"])
def test_what_is_neither_a_directory_nor_a_hub_id_is_a_config_error(model):
    """S78"""
    with pytest.raises(ConfigError, match="no such directory"):
        locate_model(model)


def test_a_file_is_not_a_model(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ConfigError, match="a file"):
        locate_model(str(file))
