"""Peak memory of a call."""

import os
from collections.abc import Callable

import torch

# The profiler's own log lines have no place between a benchmark's.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors that live at one time during a call, beyond those that lived before it.

    On the CPU every allocation and release of PyTorch's allocator is counted, by its profiler; that is exact and the
    same on a busy machine. Scratch memory that libraries take by other ways (packed matrices of a product, a few
    hundred KiB for each thread) is not seen. On CUDA it is what the caching allocator counts.

    >>> peak_memory(lambda: torch.zeros(1000)) >= 4000
    True
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    living = peak = 0
    for _, change in changes:
        living += change
        peak = max(peak, living)
    return peak
