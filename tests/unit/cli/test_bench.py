"""`quire bench`: which kinds there are, and the two that need no engine and no server, run to their end."""

from __future__ import annotations

import argparse
import json

import pytest

from quire.base.cpu_kernels import are_usable
from quire.bench import accuracy, op_cases, ops
from quire.cli import bench
from quire.cli import main as cli
from quire.ops.cpu.weights import FORMATS

needs_kernels = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")


@pytest.fixture
def parsed():
    """What the flags of `quire bench` become."""
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return lambda *words: parser.parse_args(words)


def test_flags_default_to_what_the_measurement_itself_defaults_to(parsed):
    """They are spelled out, because declaring them must not load torch."""
    args, load = parsed("ops"), ops.OpsLoad()
    assert (tuple(args.kinds), tuple(args.formats)) == (op_cases.KINDS, tuple(FORMATS))
    assert (tuple(args.rows), tuple(args.contexts)) == (load.rows, load.contexts)
    assert (args.rounds, args.max_seconds) == (load.rounds, load.max_seconds)
    args, judged = parsed("accuracy"), accuracy.AccuracyLoad()
    assert (tuple(args.formats), args.tokens, args.context) == (judged.formats, judged.tokens, judged.context)


def test_every_kind_prints_json_when_asked(parsed):
    words = {"compare": ["--target", "a=b"]}
    assert all(parsed(name, *words.get(name, []), "--json").json for name in bench._KINDS)


@needs_kernels
def test_operations_are_measured_from_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(op_cases, "last_cache_bytes", lambda: 1 << 14)
    words = ["--kinds", "rows", "--rows", "2", "--threads", "1", "--rounds", "1", "--json"]
    assert cli.main(["bench", "ops", "quire-demo", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["op"] for one in result["ops"]] == ["rms_norm", "add_rms_norm", "rope", "gated_activation", "greedy"]
    assert result["shapes"]["hidden_size"] == 192


@needs_kernels
def test_formats_are_judged_from_the_command_line(capsys, tmp_path):
    text = tmp_path / "a.jsonl"
    text.write_text('{"prompt": "Hello", "completion": " there, how are you?"}\n')
    words = ["--text", str(text), "--formats", "int4", "--json"]
    assert cli.main(["bench", "accuracy", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in result["formats"]] == ["float32", "int4"]
    assert cli.main(["bench", "accuracy", "--tokens", "12", "--context", "7", "--formats", "int8"]) == 0
    assert "12 predictions in 2 texts" in capsys.readouterr().out
