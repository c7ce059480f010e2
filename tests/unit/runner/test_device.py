"""Device services: what the CPU answers, and what asking for a missing GPU says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError
from quire.ops.cpu.program import current_pool
from quire.runner import host_resources
from quire.runner.cpu_graphs import CpuGraphs
from quire.runner.device import CpuDevice, select_device
from quire.runner.graphs import DirectGraphs
from quire.runner.input_batch import InputBatch, RunnerLimits
from quire.runner.sampling_state import SamplingState
from quire.runner.sizing import row_bytes


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_cuda_without_a_gpu_is_refused_with_the_fix(no_gpu):
    with pytest.raises(ConfigError, match="--device cpu"):
        select_device("cuda")


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu):
    before = torch.get_num_threads()
    assert select_device("auto", threads=before).name == "cpu"


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda"):
        select_device("tpu")


def test_cpu_uploads_alias_and_fetches_are_ready(device):
    values = np.arange(5)
    tensor = device.upload(values)
    assert tensor.data_ptr() == values.ctypes.data
    copy = device.fetch([tensor])
    assert copy.is_ready()
    assert copy.wait()[0] is tensor
    assert device.auto_dtype() is torch.float32
    device.synchronize()


def test_threads_are_set_as_asked():
    before = torch.get_num_threads()
    try:
        assert CpuDevice(threads=1).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not are_usable(), reason="the kernels are not built")
def test_settling_leaves_the_threads_to_the_kernels_and_torch_one():
    """torch's threads spin after an op, on cores that the kernels' threads and the server need."""
    before = torch.get_num_threads()
    try:
        device = CpuDevice(threads=2)
        device.settle(2, on_kernels=True)
        assert torch.get_num_threads() == 1
        with device.computing():
            assert current_pool().threads == device.threads == 2
        device.settle(2, on_kernels=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_cpu_records_steps_where_the_kernels_are_built():
    graphs = CpuDevice(threads=torch.get_num_threads()).graphs()
    assert isinstance(graphs, CpuGraphs if are_usable() else DirectGraphs)


def test_a_device_without_recordings_calls():
    ids, positions = torch.tensor([5]), torch.tensor([2])
    (result,) = DirectGraphs().run("sum", None, ids, positions, forward=lambda plan, i, p: (i + p,))
    assert result.item() == 7


def test_available_memory_is_what_the_kernel_says_at_most(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("")
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:   1000 kB\n")
    assert host_resources.available_memory(tmp_path) == 1000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "names"),
    [
        ("0::/box\n", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/box\n0::/\n", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
    ids=["v2", "v1"],
)
def test_a_container_limit_counts_where_it_is_smaller(tmp_path, monkeypatch, cgroup, names):
    monkeypatch.setattr(host_resources, "_V2_ROOT", tmp_path / "v2")
    monkeypatch.setattr(host_resources, "_V1_ROOT", tmp_path / "v1")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(cgroup)
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    box = tmp_path / ("v1" if "memory:" in cgroup else "v2") / "box"
    box.mkdir(parents=True)
    (box / names[0]).write_text("500000\n")
    (box / names[1]).write_text("300000\n")
    (box / "memory.stat").write_text(f"anon 1\n{names[2]} 50000\n")
    assert host_resources.available_memory(tmp_path) == 250_000
    (box / names[0]).write_text("max\n")
    assert host_resources.available_memory(tmp_path) == 1000 * 1024


def test_rows_take_the_bytes_the_ledger_says(device):
    limits = RunnerLimits(max_num_seqs=5, max_model_len=100, page_size=16, vocab_size=10)
    batch = InputBatch(limits, device)
    state = SamplingState(device=device, max_num_seqs=5, vocab_size=10)
    tensors = [batch.tokens, batch.page_tables]
    tensors += [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == row_bytes(max_num_seqs=5, max_model_len=100, page_size=16)
