"""A run from its config to its report."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.tuning.advice import helpful_loader_errors
from mcip_qdrant.tuning.build import Workshop, build
from mcip_qdrant.tuning.config import TuneConfig
from mcip_qdrant.tuning.hyper import hyper_parameters
from mcip_qdrant.tuning.listener import Listener, Silence
from mcip_qdrant.tuning.lock import only_run
from mcip_qdrant.tuning.loop import MODEL_FILE
from mcip_qdrant.tuning.material import load_images, prepare_material
from mcip_qdrant.tuning.processes import Processes, processes
from mcip_qdrant.tuning.state import REPORT_FILE, TuneReport, copy_file, save_text
from mcip_qdrant.tuning.tensorboard import LOG_FOLDER, TensorBoardLog


def run(config: TuneConfig, listener: Listener | None = None) -> TuneReport:
    """Train, or go on with a run that was stopped; the best weights are in `config.output/model.pth`.

    The same call after a kill continues from the last saved state, and gives the very weights that an undisturbed run gives
    (on a CPU bit for bit). Under torchrun every process calls it with the same config.

    Raises:
        SourceError, ExportError: data or starting weights cannot be read.
        TuningError: the run cannot start or go on; what was saved stays.
    """
    if config.method == "2sft":
        return _two_stages(config, listener)
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(helpful_loader_errors())
        together = processes(config.device)
        told: Listener = (listener or Silence()) if together.first else Silence()
        stack.enter_context(only_run(config.output, together))
        if config.tensorboard and together.first:
            told = stack.enter_context(closing(TensorBoardLog(config.output / LOG_FOLDER, told)))
        if config.device == "auto":
            told.note(f"device auto: running on {together.device.type}")
        material = prepare_material(config)
        for notice in material.notices:
            told.note(notice)
        workshop = build(config, material, together, told)
        if together.first:
            # It says that a run is finished.
            (config.output / REPORT_FILE).unlink(missing_ok=True)
        early = workshop.loop.train()
        report = _report(config, workshop, early=early, seconds=time.monotonic() - began)
        if together.first:
            save_text(json.dumps(report.as_json(), indent=2), config.output / REPORT_FILE)
        together.wait()
    return report


def _two_stages(config: TuneConfig, listener: Listener | None) -> TuneReport:
    """2SFT: GPR-FT, then re-alignment of the text tower to the tuned image tower."""
    together = processes(config.device)
    data = load_images(config.data)
    first = replace(config, method="gpr", output=config.output / "gpr", data=data)
    second = replace(
        config,
        method="realign",
        output=config.output / "realign",
        checkpoint=first.output / MODEL_FILE,
        data=data if config.pairs is None else load_images(config.pairs),
        hyper=config.realign_hyper or hyper_parameters("realign"),
        validation=_captioned(config.validation),
        metric="last" if config.metric == "last" else None,
        restart_if_start_differs=True,
    )
    # Both before any training: the first stage may take days.
    for stage in (first, second):
        prepare_material(stage)
    with only_run(config.output, together):
        return _run_both(config, first, second, together, listener)


def _run_both(
    config: TuneConfig, first: TuneConfig, second: TuneConfig, together: Processes, listener: Listener | None
) -> TuneReport:
    first_report = run(first, listener)
    report = replace(run(second, listener), method="2sft", model=config.output / MODEL_FILE)
    if together.first:
        copy_file(second.output / MODEL_FILE, report.model)
        save_text(
            json.dumps({**report.as_json(), "first_stage": first_report.as_json()}, indent=2),
            config.output / REPORT_FILE,
        )
    together.wait()
    return report


def _captioned(validation: Path | LabelledImages | None) -> LabelledImages | None:
    """Validation images for the second stage, if they have captions; else some of its own pairs are kept."""
    images = None if validation is None else load_images(validation)
    return images if images is not None and any(images.captions or []) else None


def _report(config: TuneConfig, workshop: Workshop, *, early: bool, seconds: float) -> TuneReport:
    state, notices = workshop.loop.state, list(workshop.notices)
    if state.best is not None and state.start is not None and state.best <= state.start:
        notices.append(
            f"no gain: {config.chosen_metric} was {state.start:.4f} before and {state.best:.4f} at its best; "
            "do not put these weights to use"
        )
    left_out = len(state.left_out or [])
    if left_out:
        notices.append(f"{left_out} validation images could not be read and did not count")
    return TuneReport(
        method=config.method,
        model=config.output / MODEL_FILE,
        steps=state.step,
        metric=config.chosen_metric,
        start=state.start,
        best=state.best,
        best_step=state.best_step,
        history=state.history,
        unreadable=len(state.unreadable) + left_out,
        replaced=state.replaced,
        stopped_early=early,
        seconds=round(seconds, 1),
        notices=tuple(notices),
    )
