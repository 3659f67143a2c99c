"""One process or several: what torchrun set up, and the few things that all of them do together.

Starting the processes is torchrun's work and averaging gradients DistributedDataParallel's.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mcip_qdrant.errors import TuningError
from mcip_qdrant.session import Device

# Rank 0 evaluates and saves while the others wait.
_PATIENCE: Final = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process (`rank` of `world_size`) and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> float:
        """Mean of a scalar over all processes."""
        value = value.detach().float()
        if self.world_size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value.item() / self.world_size

    def share(self, value: Any) -> Any:
        """The first process' value, everywhere."""
        if self.world_size == 1:
            return value
        holder = [value]
        distributed.broadcast_object_list(holder, src=0, device=self.device)
        return holder[0]

    def wait(self) -> None:
        """Until everybody is here."""
        if self.world_size > 1:
            distributed.barrier()

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with gradients averaged over all processes."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)


def processes(device: str) -> Processes:
    """Join the group that torchrun's environment describes, once; without one, be alone.

    The group lasts until the program ends: torchrun's store remembers addresses, so a second group would meet the first one's.

    Args:
        device: `auto`, `cpu`, `cuda`, or `cuda:N` where this process is alone: torchrun's processes have a GPU each.

    Raises:
        DeviceError: no such word.
        TuningError: a GPU was asked for and is not there, or the same one for several processes.
    """
    asked = Device.parse(device)
    numbered, world_size = ":" in device, int(os.environ.get("WORLD_SIZE", "1"))
    if asked.kind == "cuda" and asked.index >= torch.cuda.device_count():
        raise TuningError(f"--device {device}: torch sees no such GPU here; check the driver, or use --device cpu")
    if numbered and world_size > 1:
        raise TuningError(
            f"--device {device} is for one process: torchrun gives each of its {world_size} a GPU; say cuda or auto"
        )
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if asked.kind == "auto" else asked.kind
    number = asked.index if numbered else int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, number) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        return Processes(0, 1, place)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return Processes(distributed.get_rank(), world_size, place)
