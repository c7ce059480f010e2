"""The engine process's own parts: its end of the socket, and its end."""

import os
import socket
import subprocess
import sys

import msgspec
import pytest

from quire import EngineConfig
from quire.base.metrics import EngineStats
from quire.base.outputs import TokenOutput
from quire.engine import worker
from quire.engine.messages import FrameError, PhaseMessage, StepMessage, decode_from_engine, encode
from quire.engine.worker import FrontEndGoneError, FrontEndLink, WorkerConfig, frames


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, FrontEndLink(theirs)


def test_a_frame_in_pieces_is_one_message(pair):
    ours, link = pair
    ours.sendall(b"\x05\x00")
    ours.sendall(b"\x00\x00he")
    ours.sendall(b"llo")
    assert link.receive() == b"hello"


@pytest.mark.parametrize("sent", [b"", b"\x05\x00", b"\x05\x00\x00\x00hel"])
def test_a_front_end_that_goes_in_the_middle_of_a_frame_is_gone(pair, sent):
    """REL-3: the end of the socket is noticed wherever it comes."""
    ours, link = pair
    ours.sendall(sent)
    ours.close()
    assert link.receive() is None
    with pytest.raises(FrontEndGoneError):
        link.send(PhaseMessage("x"))


def test_a_frame_that_claims_too_much_is_refused(pair):
    """SEC-1: before memory is taken for it."""
    ours, link = pair
    ours.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError):
        link.receive()


def test_a_step_too_long_for_one_frame_goes_in_several(monkeypatch):
    """SEC-1: many long answers in one step are no reason to break the connection."""
    outputs = [TokenOutput(request_id=f"r{i}", index=0, token_ids=list(range(50))) for i in range(9)]
    message = StepMessage(outputs, EngineStats(step=4))
    assert frames(message) == [encode(message)]
    monkeypatch.setattr(worker, "MAX_FRAME_BYTES", 500)
    parts = [decode_from_engine(frame[4:]) for frame in frames(message)]
    assert len(parts) > 1
    assert [output for part in parts for output in part.outputs] == outputs
    assert all(part.stats.step == 4 for part in parts)


def _start(command, **options):
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*command, str(os.getpid()), str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    settings = WorkerConfig(config=EngineConfig.from_options(**options), log_level="warning")
    body = msgspec.msgpack.encode(settings)
    ours.sendall(len(body).to_bytes(4, "little") + body)
    return ours, process


def test_a_worker_whose_front_end_goes_while_it_loads_ends(demo_path):
    """REL-3: no engine stays behind, holding memory for nobody."""
    ours, process = _start([sys.executable, "-P", "-m", "quire.engine.worker"], model=demo_path)
    ours.close()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b""), err


def test_a_worker_that_was_orphaned_before_it_looked_ends_at_once():
    """REL-3: the parent may die before the kernel is asked to tell."""
    code = "from quire.engine.worker import die_with_parent; die_with_parent(1); raise SystemExit('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


UNREADABLE = """
import sys
import quire.engine.build
def fail(*args, **options):
    raise PermissionError(13, "no access", "weights")
quire.engine.build.build_core = fail
from quire.engine.worker import main
sys.exit(main())
"""


def test_an_unreadable_file_is_not_taken_for_a_front_end_that_is_gone():
    """S79, REL-2: an error of the file system while loading is a failure with a status, not a quiet end."""
    ours, process = _start([sys.executable, "-c", UNREADABLE])
    with ours:
        _, err = process.communicate(timeout=60)
    assert process.returncode == worker.EXIT_INTERNAL_ERROR
    assert b"PermissionError" in err
