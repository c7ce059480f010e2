"""Turns what the operator calls a model into a local directory: the built-in demo, a path, or a hub id (S78).

A path never touches the network. A hub id goes through `huggingface_hub`, an optional dependency, which also answers
from its local cache when there is no network. Only safetensors and text files are fetched, so pickled weights and
Python files of a repository never arrive.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from quire.base.config import BUILTIN_MODEL
from quire.base.errors import ConfigError

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_BUILTIN = (BUILTIN_MODEL, f"{BUILTIN_MODEL}-draft")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_LEFT_OUT = ("*/*", "consolidated*")
"""Subfolders (other formats of the same weights) and Mistral's second copy of its weights."""


def locate_model(model: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local directory of `model`; without `weights`, only a hub model's small files are fetched.

    Raises:
        ConfigError: when there is no such directory, or the hub cannot deliver it (with the way out).
    """
    found = local_directory(model)
    if found is not None:
        return found
    if Path(os.path.expanduser(model)).is_file():
        raise ConfigError(f"model is {model!r}, a file; it must be a checkpoint directory, which holds config.json")
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model is {model!r}: no such directory; "
            f"allowed: a checkpoint directory, a hub id (org/name), {BUILTIN_MODEL}"
        )
    return _download(model, revision, (*_SMALL_FILES, "*.safetensors") if weights else _SMALL_FILES)


def local_directory(model: str) -> Path | None:
    """The directory of a model that needs no look at the hub; None for all others."""
    if model in _BUILTIN:
        return _ASSETS / model
    path = Path(os.path.expanduser(model))
    return path if model and path.is_dir() else None


def _download(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"model is {model!r}: no such directory, and fetching it from the hub needs huggingface_hub; "
            "pip install 'quire[hf]', or give a local directory"
        ) from None
    try:
        path = snapshot_download(
            model, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_LEFT_OUT)
        )
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"model {model!r} is neither a local directory nor in the local hub cache, and the hub cannot be reached"
        ) from error
    except (HfHubHTTPError.__bases__[0], OSError, ValueError) as error:  # the first: the HTTP library's own root
        raise ConfigError(f"the hub did not deliver {model!r}: {_first_line(error)}") from error
    return Path(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
