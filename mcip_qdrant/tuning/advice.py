"""Errors of torch that a person can do something about, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.hyper import HyperParameters

# What torch calls the processes that read images, in every message about them.
_LOADER: Final = "DataLoader worker"


@contextmanager
def helpful_loader_errors() -> Iterator[None]:
    """Say what helps where a process that reads images died."""
    try:
        yield
    except RuntimeError as exc:
        if _LOADER not in str(exc):
            raise
        first_line = str(exc).splitlines()[0].strip()
        raise TuningError(
            f"a process that reads images died ({first_line}). Most often memory ran out: try fewer --loaders (0 reads without "
            "such processes), or give the machine more shared memory (/dev/shm). What was saved last stays, and the same "
            "command goes on from it"
        ) from exc


@contextmanager
def helpful_memory_errors(hyper: HyperParameters) -> Iterator[None]:
    """Say which knob helps where memory ran out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
        text = str(exc)
        if (
            isinstance(exc, RuntimeError)
            and not isinstance(exc, torch.OutOfMemoryError)
            and ("memory" not in text or _LOADER in text)
        ):
            raise
        knobs = [f"--batch-size below {hyper.batch_size}"]
        if not hyper.grad_checkpointing:
            knobs.append("--grad-checkpointing")
        if hyper.precision == "fp32":
            knobs.append("--precision bf16")
        if hyper.patch_dropout < 0.5:
            knobs.append(f"a higher --patch-dropout than {hyper.patch_dropout}")
        first_line = (text.splitlines() or ["out of memory"])[0][:300]
        raise TuningError(
            f"out of memory ({first_line}). Try {', '.join(knobs)}. The state that was saved last stays: add --accept-changes "
            "to go on from it, or --restart"
        ) from exc
