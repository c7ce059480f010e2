"""The threads behind the ops: callers take turns, idle ones sleep, forks get their own, none outlives its pool."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from quire.base.cpu_kernels import ISA_VARIABLE, instruction_sets
from quire.ops.cpu import library, table
from quire.ops.cpu.program import Pool, current_pool, using
from quire.ops.cpu.weights import PackedMatrix

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the kernels are not built")


def product(x, weight):
    matrix = PackedMatrix(*weight.shape, "int8")
    matrix.fill(weight, 0)
    return table.packed_linear(x, matrix, None)


def test_a_library_of_other_sources_is_refused_with_the_way_out(monkeypatch):
    """After an update without a new installation, a function may be missing or a record have another size."""
    monkeypatch.setattr(library, "open_kernels", lambda: SimpleNamespace(quire_op_bytes=lambda: 1))
    with pytest.raises(ImportError, match="reinstall quire"):
        library.load_library.__wrapped__()


def test_callers_from_several_threads_do_not_disturb_each_other(pool, random):
    """REL-15: each has its own tensors; scratch, counters and barriers are the pool's."""
    weight, inputs = random(130, 400), [random(rows, 400) for rows in (1, 9, 70, 300)]
    expected = [product(x, weight) for x in inputs]
    wrong = []

    def call(index):
        with using(pool):
            for _ in range(25):
                if not torch.equal(product(inputs[index], weight), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [3, 16, 37])
def test_every_task_is_done_once_however_many_threads_share_the_ranges(isa, random, threads):
    """REL-15: fewer tasks than threads, more threads than ranges of tasks, tasks taken from another's range."""
    weight, inputs = random(130, 400), [random(rows, 400) for rows in (1, 5, 33, 300)]
    with using(Pool(1, isa)):
        expected = [product(x, weight) for x in inputs]
    with using(Pool(threads, isa)):
        for _ in range(5):
            assert all(torch.equal(product(x, weight), whole) for x, whole in zip(inputs, expected, strict=True))
            total = table.add(inputs[3], inputs[3])
            assert torch.equal(total, inputs[3] * 2)


def test_idle_threads_use_no_processor(isa, random):
    """S9: an engine without requests leaves the cores to others."""
    with using(Pool(4, isa)):
        product(random(9, 64), random(40, 64))
        time.sleep(0.05)  # threads look for work a moment longer
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 5e-3


def test_a_thread_wakes_up_however_long_it_slept(isa, random):
    x, weight = random(9, 64), random(40, 64)
    with using(Pool(3, isa)):
        expected = product(x, weight)
        for pause in (0.0, 0.00005, 0.0002, 0.0005, 0.001, 0.003) * 10:
            time.sleep(pause)
            assert torch.equal(product(x, weight), expected)


def test_a_pool_ends_its_threads(isa, random):
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
    for _ in range(20):
        with using(Pool(3, isa)):
            product(random(3, 32), random(20, 32))
    Pool(5, isa)  # one that never worked
    if before is not None:
        end = time.monotonic() + 10
        while len(os.listdir("/proc/self/task")) > before:  # a thread that was joined is listed a moment longer
            assert time.monotonic() < end, "a pool left threads behind"


def test_an_instruction_set_that_is_not_here_is_refused():
    with pytest.raises(MemoryError, match="cannot start 2 threads for the sse kernels"):
        Pool(2, "sse")


def test_a_pool_in_use_is_this_threads_and_ends_with_its_block(isa):
    outside, inside = current_pool(), Pool(1, isa)
    seen = []
    with using(inside):
        assert current_pool() is inside
        thread = threading.Thread(target=lambda: seen.append(current_pool()))
        thread.start()
        thread.join()
    assert current_pool() is outside
    assert seen == [outside]


FORKING = """
import os, sys
import torch
from quire.ops.cpu import table
from quire.ops.cpu.program import Pool, current_pool

torch.set_num_threads(2)
x = torch.arange(640.0).view(10, 64)
expected = table.softcap(x, 5.0)  # starts the threads of this process
pool, other = current_pool(), Pool(2, current_pool().instruction_set)
child = os.fork()
if child == 0:
    assert current_pool() is not pool, "a fork computes with the threads of its parent"
    assert torch.equal(table.softcap(x, 5.0), expected)
    del other  # its threads are the parent's: nothing to wait for
    sys.exit(7)  # with everything that runs at exit
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert torch.equal(table.softcap(x, 5.0), expected)
print("both computed")
"""


def run(code, **environment):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are a matter of Unix")
def test_a_fork_gets_threads_of_its_own_and_ends():
    result = run(FORKING)
    assert result.returncode == 0, result.stderr
    assert "both computed" in result.stdout


@pytest.mark.slow
def test_the_environment_chooses_the_instruction_set_and_wrong_choices_are_named():
    code = "from quire.base.cpu_kernels import chosen_instruction_set as c; print(c())"
    for name in (*instruction_sets(), "reference"):
        assert run(code, **{ISA_VARIABLE: name}).stdout.strip() == name
    assert f"QUIRE_CPU_ISA is 'mmx'; usable here: {instruction_sets()[0]}" in run(code, **{ISA_VARIABLE: "mmx"}).stderr


# The thread calls the library alone: torch itself aborts a process that ends while a daemon thread is within it.
ENDING = """
import ctypes, threading, time
import torch
from quire.ops.cpu.program import current_pool
from quire.ops.cpu.table import record
x, out, pool = torch.zeros(500, 500), torch.zeros(500, 500), current_pool()
def work():
    op = record("softcap", (x, out), (500,), (5.0,))
    op.rows = 500
    while True:
        pool.run(ctypes.byref(op), 1, 1, None)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.slow
def test_a_process_ends_while_a_thread_still_computes():
    result = run(ENDING)
    assert result.returncode == 0, result.stderr
