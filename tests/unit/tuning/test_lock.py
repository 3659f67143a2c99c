"""One run at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.lock import only_run
from mcip_qdrant.tuning.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
# A run that was killed leaves a child behind for a while, as loader processes do.
HOLDS = """
import os, sys, time
from pathlib import Path
import torch
from mcip_qdrant.tuning.lock import only_run
from mcip_qdrant.tuning.processes import Processes
with only_run(Path(sys.argv[1]), Processes(0, 1, torch.device("cpu"))):
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    print("there", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_one_is_gone_even_by_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    with subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "there\n"
        with (
            pytest.raises(TuningError, match=r"another run is writing to .*choose another --output"),
            only_run(folder, ALONE),
        ):
            pass
        first.kill()
        first.wait()
        with only_run(folder, ALONE):
            pass


def test_an_output_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with (
        pytest.raises(TuningError, match=r"--output .*out cannot be used as a folder: File exists"),
        only_run(tmp_path / "out", ALONE),
    ):
        pass
