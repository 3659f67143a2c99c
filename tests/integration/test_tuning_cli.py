"""`mcip-qdrant tune …` and real processes: kills, several processes, refusals, and the road to a bundle."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import models
import numpy as np
import open_clip
import pytest
import torch
from cli_support import run
from click.testing import CliRunner, Result
from tuning_processes import train_killed_at, train_together
from tuning_support import CLASSES, IMAGES, write_archive, write_model

from mcip_qdrant.cli.tune import tune_group
from mcip_qdrant.encoder import EncoderSettings, TextEncoder
from mcip_qdrant.errors import TuningError
from mcip_qdrant.export.bundle_writer import ExportRequest, export_bundle
from mcip_qdrant.session import Device
from mcip_qdrant.tuning import hyper_parameters
from mcip_qdrant.tuning.hyper import Method
from mcip_qdrant.tuning.state import load_state

METHODS: tuple[Method, ...] = ("gpr", "mcip", "realign", "contrastive")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_archive(folder)
    write_model(folder)
    return folder


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def test_killed_at_any_step_it_goes_on_as_if_nothing_had_been(home: Path) -> None:
    """SIGKILL at five places of a run, each time started again; then weights, optimizer, metrics and log are compared."""
    hyper = hyper_parameters("mcip", batch_size=4, epochs=2, lr=1e-3, tests_per_epoch=2)
    options: dict[str, Any] = {
        "method": "mcip",
        "model": f"local-dir:{home / 'arch'}",
        "checkpoint": home / "base.pth",
        "data": home / "table.jsonl",
        "hyper": hyper,
        "hold_out": 0.3,
        "save_every": 3,
        "device": "cpu",
    }

    def start_run(output: str, place: int | None, written: str | None = None) -> int | None:
        return train_killed_at(place, {**options, "output": home / output}, written=written)

    assert start_run("whole", None) == 0
    images, held = (CLASSES - 2) * IMAGES, 2 * IMAGES
    whole = json.loads((home / "whole/report.json").read_text())
    assert whole["steps"] == 2 * (images // 4) == 18
    # Each start opens the validation images at its first evaluation (at step 0, 5 or 10), and four images a step. The first
    # evaluation is the best so far, so its state is saved at once.
    kills = {
        "in the second step": (held + 4 + 2, None, None),
        "in the fifth step, past the first state": (held + 4 * 4 + 1, None, 3),
        "in an evaluation": (2 * 4 + 3, None, 3),
        "between the state of the best weights and their own file": (1, "model.pth", 5),
        "in the second epoch": (5 * 4 + held + 2, None, 9),
    }
    for where, (place, written, saved) in kills.items():
        assert start_run("killed", place, written) == -signal.SIGKILL, where
        state = load_state(home / "killed")
        assert (state and state.step) == saved, where
        assert not (home / "killed/report.json").exists()
    assert start_run("killed", None) == 0
    killed = json.loads((home / "killed/report.json").read_text())
    assert {**killed, "seconds": 0, "model": ""} == {**whole, "seconds": 0, "model": ""}
    weights = [torch.load(home / name / "model.pth", weights_only=True) for name in ("whole", "killed")]
    assert _same(*weights)
    states = [load_state(home / name) for name in ("whole", "killed")]
    for name in ("moving", "optimizer", "history", "best", "start", "step"):
        assert _same(*(getattr(state, name) for state in states)), name
    assert _curve(home / "killed/log", "loss") == _curve(home / "whole/log", "loss")
    assert [step for step, _ in _curve(home / "whole/log", "loss")] == list(range(1, 19))
    assert [step for step, _ in _curve(home / "whole/log", "metric")] == [0, 5, 10, 15, 18]


def _curve(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    return [(event.step, event.value) for event in log.Scalars(name)]


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(home: Path) -> None:
    """AdamW's first moment after one step is a tenth of the gradient. The environment is the one that torchrun makes."""
    images = CLASSES * IMAGES

    def settings(folder: str, batch_size: int) -> list[dict[str, Any]]:
        shared = {"patch_dropout": 0.0, "grad_clip": 0.0, "epoch_share": 1.0, "text_tensors": 0, "warmup_steps": 0}
        return [
            {
                "method": method,
                "model": f"local-dir:{home / 'arch'}",
                "checkpoint": home / "base.pth",
                "data": home / "table.jsonl",
                "output": home / folder / method,
                "hyper": hyper_parameters(method, epochs=1, batch_size=batch_size, **shared),
                "metric": "last",
                "device": "cpu",
                "tensorboard": False,
            }
            for method in METHODS
        ]

    assert train_together(2, settings("two", images // 2)) == [0, 0]
    assert train_together(1, settings("one", images)) == [0]
    for method in METHODS:
        one, two = load_state(home / "one" / method), load_state(home / "two" / method)
        assert one is not None
        assert two is not None
        assert (one.step, two.step) == (1, 1)
        assert (one.fingerprint["processes"], two.fingerprint["processes"]) == (1, 2)
        expected, made = (state.optimizer["state"] for state in (one, two))
        assert set(expected) == set(made)
        largest = max(float(value["exp_avg"].abs().max()) for value in expected.values())
        assert largest > 1e-6
        for key, value in expected.items():
            torch.testing.assert_close(made[key]["exp_avg"], value["exp_avg"], rtol=1e-3, atol=largest * 1e-5)


def _command(*arguments: object) -> Result:
    """The command in this process: importing torch in another one would take most of the time."""
    return CliRunner().invoke(tune_group, [str(argument) for argument in arguments])


def test_from_captions_to_a_bundle(home: Path) -> None:
    """captions -> mcip -> export, as in the documentation; beside it, a caption file that is empty."""
    (home / "captions.txt").write_text("\n".join(f"a thing of kind {number}" for number in range(30)))
    (home / "empty.txt").write_text("\n\n")
    model = ("--model", f"local-dir:{home / 'arch'}", "--checkpoint", home / "base.pth")
    find = (
        "captions",
        *model,
        "--data",
        home / "classes",
        "--threshold",
        "-1",
        "--top",
        "3",
        "--output",
        home / "found",
    )
    empty = _command(*find, "--caption-file", home / "empty.txt")
    assert isinstance(empty.exception, TuningError)
    assert "empty.txt holds no caption" in str(empty.exception)
    found = _command(*find, "--caption-file", home / "captions.txt")
    assert found.exception is None
    assert f"{3 * CLASSES * IMAGES} captions for {CLASSES * IMAGES} images" in found.stdout
    tuned = _command(
        *("mcip", *model, "--data", home / "found/captions.jsonl", "--output", home / "tuned", "--hold-out", "0.3"),
        *("--epochs", "1", "--batch-size", "12", "--lr", "1e-3", "--tests-per-epoch", "1"),
    )
    assert tuned.exception is None
    assert f"weights written: {home / 'tuned/model.pth'}" in tuned.stdout
    assert "captions per image: 3.0 on average" in tuned.stderr
    assert "train:" in tuned.stderr
    assert "loss=" in tuned.stderr
    assert [step for step, _ in _curve(home / "tuned/log", "loss")] == [1, 2, 3]
    name = f"local-dir:{home / 'arch'}"
    request = ExportRequest(
        model=name, checkpoint=home / "tuned/model.pth", output=home / "bundle", precisions=("fp32",)
    )
    bundle = export_bundle(request)
    # MCIP leaves the text tower alone: the new bundle's texts are the base model's.
    base = models.random_model(name)
    base.load_state_dict(torch.load(home / "base.pth", weights_only=True))
    with torch.inference_mode():
        expected = base.encode_text(open_clip.get_tokenizer(name)(["a thing"]), normalize=True).numpy()
    made = TextEncoder(bundle, EncoderSettings(Device("cpu"))).encode(["a thing"])
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_without_torch_the_extra_is_named_and_help_works(home: Path) -> None:
    (home / "bare").mkdir()
    (home / "bare/sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = None\nsys.modules['open_clip'] = None\n"
    )
    environment = {"PYTHONPATH": str(home / "bare")}
    command = ("tune", "gpr", "--model", "m", "--checkpoint", "c.pth", "--data", "d", "--output", "o")
    shown = run("tune", "realign", "--help", cwd=home, env=environment).out
    for words in ("--text-tensors", "16384", "1e-05", "0.95"):
        assert words in shown
    assert 'pip install "mcip-qdrant[tune]"' in run(*command, cwd=home, env=environment, expect=4).err
    assert "lr must be above 0" in run(*command, "--lr", "0", cwd=home, env=environment, expect=1).err
    assert "'--checkpoint'" in run("tune", "gpr", "--model", "m", cwd=home, env=environment, expect=2).err
