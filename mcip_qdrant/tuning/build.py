"""Everything a run needs, put together: model, what is stored beforehand, batches, optimizer, saved state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset

from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.tuning.advice import helpful_memory_errors
from mcip_qdrant.tuning.batches import Batches, CaptionTable, Collate, distinct
from mcip_qdrant.tuning.config import TuneConfig
from mcip_qdrant.tuning.encode import Encoding
from mcip_qdrant.tuning.exam import Exam
from mcip_qdrant.tuning.files import NAMED, check_present, check_readable, file_stamps, names_below, unreadable_files
from mcip_qdrant.tuning.hyper import HyperParameters
from mcip_qdrant.tuning.listener import Listener
from mcip_qdrant.tuning.loop import Loop
from mcip_qdrant.tuning.material import Material
from mcip_qdrant.tuning.optimisation import make_optimizer
from mcip_qdrant.tuning.order import Order
from mcip_qdrant.tuning.pictures import Sample, TrainingPairs, TrainingPictures
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.resume import state_of_run
from mcip_qdrant.tuning.state import State
from mcip_qdrant.tuning.stored import Stored, digest, stored_vectors
from mcip_qdrant.tuning.student import Source, Student, load_student, loader_count, precision_context
from mcip_qdrant.tuning.trainees import ClassTrainee, McipTrainee, PairTrainee, Trainee

_ENCODE_BATCH: Final = 128


@dataclass(frozen=True, slots=True)
class Workshop:
    """A run that is ready to start, and what a person should know about it."""

    loop: Loop
    notices: tuple[str, ...]


def build(config: TuneConfig, material: Material, together: Processes, listener: Listener) -> Workshop:
    """Put a run together and bring back its saved state.

    Raises:
        ExportError: the model cannot be had.
        TuningError: the output holds another run, or the data cannot be used.
    """
    hyper = config.chosen_hyper
    student = load_student(_source(config), patch_dropout=hyper.patch_dropout, seed=hyper.seed)
    notices = list(material.notices)
    autocast, scaler = precision_context(hyper.precision, together.device)
    trainee = _trainee(config, student, material.training, together).to(together.device)
    encoding = Encoding(
        trainee,
        student.preprocess,
        student.tokenizer,
        together.device,
        autocast,
        min(hyper.batch_size, _ENCODE_BATCH),
        loader_count(config.loaders, together.device),
    )
    stamps = file_stamps(material.training.paths)
    check_present(material.training.paths, stamps, config.max_unreadable)
    state = state_of_run(config, material, stamps, student.identity, together, listener)
    store = _Store(config.output, student, encoding, together, listener, hyper)
    batches, said = _batches(config, material, student, store, together, state, stamps)
    for text in said:
        listener.note(text)
    exam = None
    if material.validation is not None:
        exam = Exam(
            material.validation,
            config.chosen_metric,
            encoding,
            frozen_images=config.method == "realign",
            frozen_texts=config.method in {"gpr", "mcip"},
            max_unreadable=config.max_unreadable,
        )
    loop = Loop(
        trainee=trainee,
        optimizer=make_optimizer(trainee, hyper),
        scaler=scaler,
        autocast=autocast,
        batches=batches,
        hyper=hyper,
        together=together,
        state=state,
        folder=config.output,
        exam=exam,
        save_every=config.save_every,
        max_unreadable=config.max_unreadable,
        listener=listener,
    )
    return Workshop(loop, (*notices, *said))


def _source(config: TuneConfig) -> Source:
    return Source(config.model, config.checkpoint, config.quick_gelu, config.base, config.tokenizer)


def _trainee(config: TuneConfig, student: Student, training: LabelledImages, together: Processes) -> Trainee:
    hyper, model = config.chosen_hyper, student.model
    dimensions = student.dimensions
    torch.manual_seed(hyper.seed)
    if config.method in {"gpr", "mcip"}:
        kind = ClassTrainee if config.method == "gpr" else McipTrainee
        return kind(model, student.preprocess, hyper, classes=len(training.names), dimensions=dimensions)
    return PairTrainee(
        model,
        student.preprocess,
        hyper,
        rank=together.rank,
        world_size=together.world_size,
        frozen_images=config.method == "realign",
    )


@dataclass(frozen=True, slots=True)
class _Store:
    """Vectors of frozen towers, kept in the run's folder."""

    folder: Path
    student: Student
    encoding: Encoding
    together: Processes
    listener: Listener
    hyper: HyperParameters

    def images(self, paths: list[Path], stamps: list[str]) -> Stored:
        named = [*names_below(paths), *stamps]
        return self._vectors("image", len(paths), named, lambda rows: self.encoding.images(paths, rows))

    def lost(self, paths: list[Path], stored: Stored, max_unreadable: float) -> dict[str, str]:
        """Files without vector and why, each told; too many are an error."""
        lost = unreadable_files(paths, stored.failed, self.encoding.unreadable)
        for path in list(lost)[:NAMED]:
            self.listener.note(f"{path} cannot be used ({lost[path]}); it is tried again at the next start")
        check_readable(lost, len(paths), max_unreadable, "images")
        return lost

    def texts(self, texts: list[str]) -> Stored:
        return self._vectors("caption", len(texts), texts, lambda rows: self.encoding.texts(texts, rows))

    def _vectors(self, kind: str, count: int, described: list[str], encode: Callable[[Any], Any]) -> Stored:
        self.listener.begin(f"{kind} vectors", count, 0)
        with helpful_memory_errors(self.hyper):
            return stored_vectors(
                self.folder / f"{kind}_vectors",
                digest([self.student.identity, *described]),
                count=count,
                dimensions=self.student.dimensions,
                encode=encode,
                together=self.together,
                on_items=self.listener.advance,
            )


def _batches(
    config: TuneConfig,
    material: Material,
    student: Student,
    store: _Store,
    together: Processes,
    state: State,
    stamps: list[str],
) -> tuple[Batches, list[str]]:
    hyper, training = config.chosen_hyper, material.training
    captions, notices = material.captions, []
    labels = table = vectors = None
    if config.method == "realign":
        stored = store.images(training.paths, stamps)
        vectors = stored.vectors
        lost = store.lost(training.paths, stored, config.max_unreadable)
        if state.step and lost.keys() != state.unreadable.keys():
            notices.append("other images than before cannot be read: their order is a new one from here on")
        state.unreadable = lost
        if lost:
            notices.append(f"left out: {len(lost)} images that cannot be read")
            readable = np.ones(len(training), dtype=bool)
            readable[stored.failed] = False
            training, vectors = training.where(readable), vectors[readable]
            captions = training.captions or []
    if config.method == "mcip":
        texts, of_image = distinct(captions)
        table = CaptionTable(store.texts(texts).vectors, of_image)
    if config.method in {"gpr", "mcip"}:
        labels, captions = training.labels, []
    order = Order(
        len(training),
        batch_size=hyper.batch_size,
        epochs=hyper.epochs,
        seed=hyper.seed,
        epoch_share=hyper.epoch_share,
        balance=labels if hyper.class_balanced else None,
        rank=together.rank,
        world_size=together.world_size,
    )
    if order.batch_size < hyper.batch_size:
        notices.append(
            f"batch of {order.batch_size} instead of {hyper.batch_size}: the data has {len(training)} images for "
            f"{together.world_size} processes"
        )
    counts = [len(own) for own in captions] or None
    samples: Dataset[Sample] = (
        TrainingPairs(counts or [])
        if vectors is not None
        else TrainingPictures(training.paths, student.preprocess, hyper, counts)
    )
    made = Batches(
        samples,
        Collate(captions, student.tokenizer),
        order,
        device=together.device,
        loaders=loader_count(config.loaders, together.device),
        labels=labels,
        table=table,
        image_vectors=vectors,
    )
    return made, notices
