"""How much memory there is for a run."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container, or a job of a batch system, may take."""


def memory_of(device: str) -> int | None:
    """Bytes of memory that a device has in all, as in ``training.device``; None where it is not known. Of the
    processor, what this container may take if that is less."""
    place = torch.device(device)
    if place.type != "cpu":
        is_there = place.type == "cuda" and (place.index or 0) < torch.cuda.device_count()
        return torch.cuda.get_device_properties(place).total_memory if is_there else None
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        # There is none, or it says "max".
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(file.read_text()))
    return min(sizes)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """This process takes half of the machine's memory at most, or 4 GiB, and then raises ``MemoryError``. Without a
    limit, the system would end it, or other processes.

    >>> with limited():
    ...     pass
    """
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = max(2**32, (memory_of("cpu") or 0) // 2)
    most = min([wanted, *(one for one in (before, hard) if one != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def gigabytes(count: float) -> str:
    """In GiB, as in ``"1.5 GiB"``."""
    size = count / 2**30
    return f"{size:,.1f} GiB" if size >= 0.1 else f"{size:.2g} GiB"
