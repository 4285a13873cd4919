"""The processes that share a run: they meet once, and wait for one another as long as it takes."""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

__all__ = ["processes_on"]

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
