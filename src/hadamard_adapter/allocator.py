"""Memory that is freed stays with the process, as with jemalloc or tcmalloc."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""glibc's names and numbers (malloc.h)."""


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to give nothing back to the system, so that activations find their memory warm.

    glibc returns large blocks as they are freed, and the kernel hands them out again page by page, each one
    zeroed: a forward pass of a small model on a CPU spends up to a tenth of its time on that, and any added
    operation looks dearer than it is. Memory then stays at the process's peak. To be called before threads
    start; PyTorch's tuning guide gives jemalloc and tcmalloc for the same purpose.

    Returns:
        Whether it took effect: False where the C library is another (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    values = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0, M_ARENA_MAX: 1}
    return all([mallopt(name, value) == 1 for name, value in values.items()])
