"""Limits that a test puts on the code it runs: memory, time, file sizes and the network."""

import ipaddress
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def memory_limit(megabytes: int) -> Iterator[None]:
    """Let this process take at most so much address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail if the block takes more processor time than that."""
    started = time.process_time()
    yield
    took = time.process_time() - started
    assert took < seconds, f"took {took:.1f} s of processor time"


@contextmanager
def file_size_limit(kilobytes: int) -> Iterator[None]:
    """Let this process write no file longer than that, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 2**10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


#: What :func:`forbid_network` has refused: libraries may swallow the error.
REFUSED: list[str] = []


def forbid_network() -> None:
    """Refuse every connection of this process but to itself, from now on."""

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost", socket.gethostname()):
            return
        try:
            if ipaddress.ip_address(str(name)).is_loopback:
                return
        except ValueError:
            pass  # a name
        REFUSED.append(str(name))
        raise OSError(f"no network in tests: {name}")

    def guarded(function: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return function(self, address)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        check(host)
        return look_up(host, *args, **options)

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    socket.getaddrinfo = getaddrinfo
