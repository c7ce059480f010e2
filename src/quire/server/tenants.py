"""Whose request it is: keys, tenants and their accounts, and the file they come from, read again when it changes.

Everything here happens on the event loop but reading and parsing the file. A file that is wrong changes nothing and is
reported once; what it says takes effect as a whole, for requests that come from then on.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.base.tenancy import DEFAULT_TENANT, Account, Tenant
from quire.server.tenants_file import TenantsFile, key_digest, read_tenants

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often the file is looked at."""
MAX_TENANTS_BYTES = 16 * 2**20


class KeyRing:
    """The accepted keys, as digests; finding a key's owner takes the same time whichever key fits, or none."""

    def __init__(self, owners: Mapping[bytes, str]) -> None:
        self._owners = tuple(owners.items())

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, presented: bytes) -> str | None:
        """Whose key the bytes are; all keys are compared, whatever the outcome."""
        digest = hashlib.sha256(presented).digest()
        matches = [hmac.compare_digest(digest, known) for known, _ in self._owners]
        return self._owners[matches.index(True)][1] if True in matches else None

    def holds(self, digest: bytes) -> bool:
        """Whether a key of this digest is accepted, asked by the operator and not by a client."""
        return any(known == digest for known, _ in self._owners)


@dataclass(frozen=True, slots=True)
class _Read:
    """What one look at the file brought."""

    stamp: tuple[int, int]
    content: bytes
    file: TenantsFile | None
    problem: str | None


class Tenants:
    """All tenants of one server, those of `--api-key` and those of `--tenants-file`.

    Raises:
        ConfigError: the file cannot be read, or what it says is wrong.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.wall_clock = wall_clock
        self.accounts: dict[str, Account] = {}
        """Of the tenants there are now, and of those that left with requests still open."""
        self._path = Path(config.tenants_file) if config.tenants_file is not None else None
        self._api_keys = {hashlib.sha256(key.encode()).digest(): DEFAULT_TENANT for key in config.api_key}
        self._admin = KeyRing({key_digest(config.admin_key): "admin"} if config.admin_key is not None else {})
        if any(self._admin.holds(digest) for digest in self._api_keys):
            raise ConfigError("--admin-key is one of --api-key as well; the administrator's key opens nothing else")
        self._last: _Read | None = None
        self._reloading = asyncio.Lock()
        self._adopt(TenantsFile({}, {}))
        if self._path is not None:
            read = self._read(None)
            if read is None or read.file is None:
                raise ConfigError(f"tenants_file {self._path}: {read.problem if read is not None else 'unreadable'}")
            self._adopt(read.file)
            self._last = read

    @property
    def has_keys(self) -> bool:
        """Whether requests must bring a key."""
        return len(self._keys) > 0

    @property
    def has_admin_key(self) -> bool:
        """Whether there are administrative routes."""
        return len(self._admin) > 0

    def find(self, presented: list[bytes]) -> Account | None:
        """The account of the tenant whose key is among those presented; None for unknown keys."""
        owners = [self._keys.owner(key) for key in presented]
        name = next((owner for owner in owners if owner is not None), None)
        return self.accounts[name] if name is not None else None

    def is_admin(self, presented: list[bytes]) -> bool:
        """Whether the administrator's key is among those presented."""
        owners = [self._admin.owner(key) for key in presented]
        return any(owners)

    @property
    def nobody(self) -> Account:
        """The account of requests to a server without keys."""
        return self.accounts[DEFAULT_TENANT]

    def names(self) -> tuple[str, ...]:
        """The tenants there are now."""
        return tuple(self._tenants)

    async def watch(self) -> None:
        """Look at the file for ever, and take over what changed."""
        while self._path is not None:
            await asyncio.sleep(POLL_SECONDS)
            await self.reload()

    async def reload(self, *, force: bool = False) -> str | None:
        """Read the file again if it changed, or in any case; returns what is wrong with it, None when all is well."""
        if self._path is None:
            return "no file is set; start the server with --tenants-file"
        async with self._reloading:
            known = self._last
            read = await asyncio.to_thread(self._read, None if force else known)
            if read is None:
                return known.problem if known is not None else None
            self._last = read
            if read.file is None:
                if known is None or (known.content, known.problem) != (read.content, read.problem):
                    logger.error("the tenants file is not taken over, the tenants stay as they are: %s", read.problem)
                return read.problem
            if known is None or known.content != read.content or known.file is None:
                self._adopt(read.file)
                logger.info("tenants were read again: %d tenants, %d keys", len(self._tenants), len(self._keys))
            return None

    def _read(self, known: _Read | None) -> _Read | None:
        """The file as it is now; None when it is the known one, by its time and size. Runs in a thread."""
        assert self._path is not None
        stamp, content = (0, 0), b""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = (status.st_mtime_ns, status.st_size)
                if known is not None and known.stamp == stamp:
                    return None
                content = file.read(MAX_TENANTS_BYTES + 1)
            if len(content) > MAX_TENANTS_BYTES:
                raise ConfigError(f"the file is larger than {MAX_TENANTS_BYTES} bytes")
            parsed = read_tenants(content.decode())
            self._check(parsed)
        except OSError as error:
            return _Read(stamp, content, None, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            return _Read(stamp, content, None, "not UTF-8")
        except ConfigError as error:
            return _Read(stamp, content, None, str(error))
        return _Read(stamp, content, parsed, None)

    def _check(self, parsed: TenantsFile) -> None:
        """What only the flags and the file together can violate; raises ConfigError."""
        for digest, name in parsed.owners.items():
            if self._admin.holds(digest):
                raise ConfigError(f"tenant {name} has the key of --admin-key; that one opens nothing else")
            if digest in self._api_keys and name != DEFAULT_TENANT:
                raise ConfigError(f"tenant {name} has a key of --api-key, which belongs to tenant {DEFAULT_TENANT}")
        if not parsed.owners and not self._api_keys:
            raise ConfigError("no tenant has a key; without keys the server would be open to everyone")

    def _adopt(self, file: TenantsFile) -> None:
        """Let these be the tenants from now on; use of limits goes on where it was."""
        now = self.clock()
        tenants = {DEFAULT_TENANT: Tenant(name=DEFAULT_TENANT), **file.tenants}
        self._tenants = tenants
        owners = {**file.owners, **self._api_keys}
        self._keys = KeyRing(owners)
        self.is_shared = len(set(owners.values())) > 1
        """Whether there are keys of more than one tenant."""
        for name, tenant in tenants.items():
            account = self.accounts.setdefault(name, Account(tenant))
            account.adopt(tenant, now)
        for name, account in list(self.accounts.items()):
            if name not in tenants and not account.num_concurrent:
                del self.accounts[name]
