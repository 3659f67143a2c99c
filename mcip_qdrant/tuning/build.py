"""Everything a run needs, put together: model, what is stored beforehand, batches, optimizer, saved state."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset

from mcip_qdrant.bundle import file_sha256
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.export.architecture import resolve_architecture
from mcip_qdrant.export.checkpoint import load_model
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.towers import OpenClipModel
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.tuning.batches import Batches, CaptionTable, Collate, distinct
from mcip_qdrant.tuning.config import HyperParameters, TuneConfig
from mcip_qdrant.tuning.encode import Encoding
from mcip_qdrant.tuning.exam import Exam
from mcip_qdrant.tuning.listener import Listener
from mcip_qdrant.tuning.loop import Loop, helpful_memory_errors
from mcip_qdrant.tuning.material import Material
from mcip_qdrant.tuning.optimisation import make_optimizer
from mcip_qdrant.tuning.order import Order
from mcip_qdrant.tuning.pictures import Sample, TrainingPairs, TrainingPictures
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.state import STATE_FILE, State, load_state
from mcip_qdrant.tuning.stored import Vectors, digest, stored_vectors
from mcip_qdrant.tuning.trainees import ClassTrainee, McipTrainee, PairTrainee, Trainee

_ENCODE_BATCH: Final = 128
_MOST_LOADERS: Final = 8


@dataclass(frozen=True, slots=True)
class Student:
    """A model with what belongs to it: preprocessing, tokenizer, and the digest of the weights it started from."""

    model: OpenClipModel
    preprocess: Preprocess
    tokenizer: Any
    identity: str

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return embedding_dimensions(self.model)


@dataclass(frozen=True, slots=True)
class Workshop:
    """A run that is ready to start, and what a person should know about it."""

    loop: Loop
    notices: tuple[str, ...]


def load_student(config: TuneConfig, *, patch_dropout: float, seed: int) -> Student:
    """Build the model with its starting weights; random ones, by seed, without a checkpoint.

    Raises:
        ExportError: architecture, checkpoint or tokenizer refused, for the reasons that `export` has.
    """
    architecture = resolve_architecture(config.model, quick_gelu=config.quick_gelu, base=config.base)
    tokenizer = load_reference_tokenizer(architecture.name, architecture.text_config, config.tokenizer)
    torch.manual_seed(seed)
    model: OpenClipModel = load_model(
        architecture, checkpoint=config.checkpoint, pretrained=None, patch_dropout=patch_dropout
    )
    for parameter in model.parameters():
        # The checkpoint's file is mapped: training must not write to those pages, nor fail when the file is replaced.
        parameter.data = parameter.data.clone()
    preprocess = architecture.image_preprocess(model.visual.image_size)
    weights = "random" if config.checkpoint is None else file_sha256(config.checkpoint)
    described = json.dumps([architecture.fingerprint(), asdict(preprocess)], sort_keys=True, default=str)
    return Student(model, preprocess, tokenizer, digest([weights, described]))


def embedding_dimensions(model: OpenClipModel) -> int:
    """Length D of a model's vectors, asked of the model itself."""
    length = getattr(model, "context_length", None) or model.text.context_length
    with torch.inference_mode():
        return int(model.encode_text(torch.zeros((1, length), dtype=torch.int64)).shape[1])


def precision_context(
    precision: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler]:
    """Autocast and gradient scaler for a precision on a device.

    Raises:
        TuningError: fp16 on a CPU, whose kernels lack it.
    """
    chosen = ("fp16" if device.type == "cuda" else "fp32") if precision == "auto" else precision
    if chosen == "fp16" and device.type != "cuda":
        raise TuningError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen)
    scaler = torch.amp.GradScaler(device.type, enabled=chosen == "fp16")
    return (lambda: torch.autocast(device.type, dtype=kind, enabled=kind is not None)), scaler


def loader_count(config: TuneConfig, device: torch.device) -> int:
    """Processes that decode images for one training process."""
    if config.loaders is not None:
        return config.loaders
    return min(_MOST_LOADERS, available_cpus()) if device.type == "cuda" else 0


def build(config: TuneConfig, material: Material, together: Processes, listener: Listener) -> Workshop:
    """Put a run together and bring back its saved state.

    Raises:
        ExportError: the model cannot be had.
        TuningError: the output holds another run, or the data cannot be used.
    """
    hyper = config.chosen_hyper
    config.output.mkdir(parents=True, exist_ok=True)
    student = load_student(config, patch_dropout=hyper.patch_dropout, seed=hyper.seed)
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
        loader_count(config, together.device),
    )
    state = _state(config, material, student, together, listener)
    store = _Store(config.output, student, encoding, together, listener, hyper)
    batches, said = _batches(config, material, student, store, together)
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
        grade=None if exam is None else exam.grade,
        save_every=config.save_every,
        max_unreadable=config.max_unreadable,
        listener=listener,
    )
    return Workshop(loop, (*notices, *said))


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

    def images(self, paths: list[Path]) -> Vectors:
        return self._vectors("image", file_states(paths), lambda rows: self.encoding.images(paths, rows))

    def texts(self, texts: list[str]) -> Vectors:
        return self._vectors("caption", texts, lambda rows: self.encoding.texts(texts, rows))

    def _vectors(self, kind: str, items: list[str], encode: Callable[[Any], Any]) -> Vectors:
        self.listener.begin(f"{kind} vectors", len(items), 0)
        with helpful_memory_errors(self.hyper):
            return stored_vectors(
                self.folder / f"{kind}_vectors",
                digest([self.student.identity, *items]),
                count=len(items),
                dimensions=self.student.dimensions,
                encode=encode,
                together=self.together,
                on_items=self.listener.advance,
            )


def file_states(paths: list[Path]) -> list[str]:
    """Name, size and time of each file: what tells whether a stored vector still holds."""
    states = []
    for path in paths:
        try:
            found = path.stat()
            states.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
        except OSError:
            states.append(str(path))
    return states


def _batches(
    config: TuneConfig, material: Material, student: Student, store: _Store, together: Processes
) -> tuple[Batches, list[str]]:
    hyper, training = config.chosen_hyper, material.training
    captions, notices = material.captions, []
    labels = table = vectors = None
    if config.method == "realign":
        vectors = store.images(training.paths)
        readable = np.linalg.norm(vectors, axis=1) > 0
        if not readable.all():
            notices.append(f"left out: {int((~readable).sum())} images that cannot be read")
            training, vectors = training.where(readable), vectors[readable]
            captions = training.captions or []
    if config.method == "mcip":
        texts, of_image = distinct(captions)
        table = CaptionTable(store.texts(texts), of_image)
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
        loaders=loader_count(config, together.device),
        labels=labels,
        table=table,
        image_vectors=vectors,
    )
    return made, notices


def _state(
    config: TuneConfig, material: Material, student: Student, together: Processes, listener: Listener
) -> State:
    fingerprint = {
        "method": config.method,
        "metric": config.chosen_metric,
        "start": student.identity,
        "training": _data_digest(material.training),
        "validation": None if material.validation is None else _data_digest(material.validation),
        "processes": together.world_size,
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(config.chosen_hyper).items()},
    }
    if config.restart and together.first:
        (config.output / STATE_FILE).unlink(missing_ok=True)
    together.wait()
    saved = load_state(config.output)
    if saved is None:
        return State(fingerprint)
    different = [name for name, value in fingerprint.items() if saved.fingerprint.get(name) != value]
    fixed = {"method", "start"} & set(different)
    if fixed or (different and not config.accept_changes):
        raise TuningError(
            f"{config.output / STATE_FILE} is of a run with other settings ({', '.join(different)}). Choose another --output, "
            f"or --restart to throw it away{'' if fixed else ', or --accept-changes to go on from it with the new ones'}"
        )
    if "training" in different and config.method in {"gpr", "mcip"}:
        raise TuningError("the training data changed, and class proxies belong to its classes: use --restart")
    listener.note(f"goes on from step {saved.step}")
    if {"metric", "validation"} & set(different):
        saved.best = saved.start = None
    return replace(saved, fingerprint=fingerprint)


def _data_digest(images: LabelledImages) -> str:
    captions = images.captions or []
    return digest(
        [
            *map(str, images.paths),
            *map(str, images.labels.tolist()),
            *images.names,
            *(json.dumps(own) for own in captions),
        ]
    )
