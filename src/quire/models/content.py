"""What tells one checkpoint's weights from another's: checksums of every byte, and when old ones may be believed.

Size, time and inode are no content: a file restored with its old times has them all. So the bytes decide. They are
checksummed in pieces as they are packed, which costs a tenth of packing them. CRC-32 finds every change within 32 bits
and misses another with a chance of 2^-32 a piece; it protects from mix-ups, not from somebody who may write to the
checkpoint anyway.

Reading all of a large checkpoint only to find that it has not changed would cost what the cache saves, above all from a
cold disk. Hence a note of what the files were like when their bytes were summed. It counts only while device, inode,
size, modification and *change* time are all the same: the kernel sets the change time on every write, rename, link and
`utime`, and no call sets it back. A file that had been changed less than `SETTLED_SECONDS` before its bytes were read
gets no note, because two changes within one tick of the clock look alike, and because a page that a program maps and
has just dirtied takes more writes without a new time until the kernel has written it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire.models.tensor_headers import TensorHeader

SETTLED_SECONDS = 60
"""Above the 35 seconds after which Linux has written every dirty page back."""
PIECE_BYTES = 4 * 2**20


def piece_sums(data: memoryview) -> list[int]:
    """CRC-32 of every piece of `data`; other threads run meanwhile."""
    return [zlib.crc32(data[start : start + PIECE_BYTES]) for start in range(0, len(data), PIECE_BYTES)]


def content_key(sums: Mapping[str, list[int]]) -> str:
    """One name for tensors with these sums by name."""
    return _digest(sorted(sums.items()))


def layout_key(tensors: Mapping[str, TensorHeader]) -> str:
    """One name for tensors of these names, dtypes and shapes."""
    return _digest(sorted((name, header.dtype, header.shape) for name, header in tensors.items()))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class FileNote:
    """What the files of a checkpoint are like just now, as a text to be compared with an earlier one."""

    def __init__(self, directory: Path, files: Sequence[str], *, now: float) -> None:
        stats = [os.stat(directory / file) for file in files]
        self.text = json.dumps(
            [
                [file, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
                for file, stat in zip(files, stats, strict=True)
            ]
        )
        self.is_settled = all(stat.st_ctime + SETTLED_SECONDS <= now for stat in stats)
        """Whether a change from now on would show."""
