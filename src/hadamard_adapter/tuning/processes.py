"""The processes that share a run: they meet once, wait for one another, and compute the same twice."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

__all__ = ["deterministic_on", "processes_on"]

PATIENCE = timedelta(days=1)
"""How long others wait while the first computes what frozen layers put out; PyTorch says 10 to 30 minutes."""


def processes_on(device: torch.device) -> PartialState:
    """This process among those that a launcher started, with a device of this kind.

    Accelerate keeps the device of the first run in a process; another one is then set here.

    Example:
        >>> processes_on(torch.device("cpu")).num_processes
        1
    """
    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    is_other = state.device is not None and state.device.type != device.type
    if is_other and state.num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return state


@contextlib.contextmanager
def deterministic_on(device: torch.device) -> Iterator[None]:
    """Within it a GPU computes the same from the same; what has no such kernel warns. Then as it was.

    cuBLAS looks at its variable once a process, at the first product, so it is set before any.

    Args:
        device: of the run; on others than CUDA nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before
