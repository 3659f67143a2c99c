"""Which device a process gets."""

from __future__ import annotations

import pytest
import torch

from mcip_qdrant.cli.tune import tune_group
from mcip_qdrant.errors import DeviceError, TuningError
from mcip_qdrant.tuning.processes import processes


def test_devices_are_those_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes("cpu").device == torch.device("cpu")
    assert processes("auto").device.type in {"cpu", "cuda"}
    with pytest.raises(DeviceError, match="say auto, cpu, cuda or cuda:N"):
        processes("gpu")
    with pytest.raises(TuningError, match="--device cuda:99: torch sees no such GPU here"):
        processes("cuda:99")
    # What a machine with two GPUs says; the refusal comes before any of them is touched.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TuningError, match="torchrun gives each of its 2 a GPU"):
        processes("cuda:1")


@pytest.mark.parametrize("name", sorted(tune_group.commands))
def test_every_command_reads_the_variable(name: str) -> None:
    (option,) = [option for option in tune_group.commands[name].params if option.name == "device"]
    assert option.envvar == "MCIP_QDRANT_DEVICE"
