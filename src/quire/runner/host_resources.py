"""What the host grants this process: memory and cores, control-group limits included. Torch-free, Linux first.

In a container the machine's own numbers promise more than the process may take; the smaller one counts.
"""

from __future__ import annotations

import os
from pathlib import Path

_V2_ROOT = Path("/sys/fs/cgroup")
_V1_ROOT = Path("/sys/fs/cgroup/memory")


def available_memory(proc: Path = Path("/proc")) -> int:
    """Bytes this process may still take without swapping: the kernel's estimate, capped by its control groups."""
    free = _meminfo_available(proc)
    left = [_group_left(folder, *names) for folder, names in _memory_groups(proc)]
    return max(0, min([free, *(bytes_left for bytes_left in left if bytes_left is not None)]))


def usable_cores() -> int:
    """Cores the process may run on (its affinity mask where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _meminfo_available(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:  # no procfs: count all of the machine's memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _memory_groups(proc: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Folders of the control groups that may limit us, with the names of their limit, usage and reclaimable counts."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if number == "0":
            names = ("memory.max", "memory.current", "inactive_file")
            groups += [(folder, names) for folder in {_V2_ROOT, _V2_ROOT / relative}]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            groups += [(folder, names) for folder in {_V1_ROOT, _V1_ROOT / relative}]
    return groups


def _group_left(folder: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> int | None:
    """Bytes left under one group's limit, its reclaimable file cache counted as free; None where there is no limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        if not limit.isdigit():
            return None
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group is not visible from here (namespaces), or is the root, which has no limit
        return None
    return int(limit) - usage + int(stat.get(reclaimable_name, 0))
