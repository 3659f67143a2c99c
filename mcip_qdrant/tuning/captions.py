"""Pseudo-captions: for every image the captions of a large file that its embedding is closest to. Retrieved, not generated.

As in the paper's released code: the 20 captions of highest cosine among the distinct texts of a caption file (CC12M there), of
which those above a threshold are kept, so that an image has 0 to 20.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages, show
from mcip_qdrant.tuning.advice import helpful_loader_errors
from mcip_qdrant.tuning.caption_file import read_caption_file
from mcip_qdrant.tuning.encode import Encoding
from mcip_qdrant.tuning.files import (
    NAMED,
    check_present,
    check_readable,
    file_stamps,
    names_below,
    text_name,
    unreadable_files,
)
from mcip_qdrant.tuning.hyper import Precision, require
from mcip_qdrant.tuning.listener import Listener, Silence
from mcip_qdrant.tuning.lock import only_run
from mcip_qdrant.tuning.material import load_images
from mcip_qdrant.tuning.nearest import nearest_captions
from mcip_qdrant.tuning.processes import Processes, processes
from mcip_qdrant.tuning.state import save_lines, save_text
from mcip_qdrant.tuning.stored import Stored, Vectors, digest, stored_vectors
from mcip_qdrant.tuning.student import Source, Student, load_student, loader_count, precision_context
from mcip_qdrant.tuning.trainees import Trainee

TABLE_FILE: Final = "captions.jsonl"
_BATCH: Final = 128
_IMAGES_AT_ONCE: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionConfig:
    """One pseudo-caption run.

    Attributes:
        source: the model whose space both are compared in. The paper used a plain CLIP; thresholds do not carry over
            between models.
        data: images, with classes or without.
        caption_file: `.txt` with one caption a line, or `.csv` / `.jsonl` with a column `caption`.
        output: folder for `captions.jsonl` and the stored vectors.
        top: captions per image at most.
        threshold: cosine that a caption must exceed; 0.27 in the released configuration, 0.271 in its function's default.
        device: `auto`, `cpu`, `cuda`, or `cuda:N` for a run of one process.
        loaders: processes that decode images; None: none on a CPU, up to 8 for a GPU.
        max_unreadable: share of the images, 0..1, that may be unreadable before the run stops.
    """

    source: Source
    data: Path | LabelledImages
    caption_file: Path
    output: Path
    top: int = 20
    threshold: float = 0.27
    precision: Precision = "auto"
    device: str = "auto"
    loaders: int | None = None
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        require(0 <= self.max_unreadable <= 1, "max_unreadable is a share, 0..1")
        require(self.top >= 1, "top must be at least 1")
        require(-1 <= self.threshold <= 1, "threshold is a cosine, -1..1")
        require(self.source.checkpoint is not None, "pseudo-captions need trained weights: give a checkpoint")


@dataclass(frozen=True, slots=True)
class CaptionReport:
    """What came out: counts, and the cosine of the best caption at the 10th, 50th and 90th percentile of the images."""

    table: Path
    images: int
    captions: int
    mean_per_image: float
    without: int
    unreadable: int
    best_cosine: tuple[float, float, float]
    notices: tuple[str, ...]


def find_captions(config: CaptionConfig, listener: Listener | None = None) -> CaptionReport:
    """Write `output/captions.jsonl`: a table of image, class, captions and their cosines, best first, as `tune mcip` reads it.

    Killed and started again, it goes on after the last finished block. Under torchrun the processes share the work.

    Raises:
        SourceError, ExportError, TuningError: images, model or captions cannot be used; what was computed stays.
    """
    together = processes(config.device)
    told = listener if listener is not None and together.first else Silence()
    with only_run(config.output, together), helpful_loader_errors():
        if config.device == "auto":
            told.note(f"device auto: running on {together.device.type}")
        return _find(config, together, told)


def _find(config: CaptionConfig, together: Processes, told: Listener) -> CaptionReport:
    texts = read_caption_file(config.caption_file)
    images = load_images(config.data)
    for notice in images.notices:
        told.note(notice)
    if len(images) == 0:
        raise TuningError(f"{config.data}: no images")
    stamps = file_stamps(images.paths)
    check_present(images.paths, stamps, config.max_unreadable)
    student = load_student(config.source, patch_dropout=0.0, seed=0)
    named = [student.identity, *names_below(images.paths), *stamps]
    pictures, captions = _vectors(config, images, digest(named), texts, student, together, told)
    identity = digest([*named, *texts, f"{config.top} {config.threshold} {pictures.failed.tolist()}"])
    blocks = _match_all(config, identity, pictures.vectors, captions, together, told)
    together.wait()
    report = _write_table(config, blocks, images, texts, pictures, together)
    together.wait()
    return report


def _vectors(
    config: CaptionConfig,
    images: LabelledImages,
    images_identity: str,
    texts: list[str],
    student: Student,
    together: Processes,
    told: Listener,
) -> tuple[Stored, Vectors]:
    autocast, _ = precision_context(config.precision, together.device)
    trainee = Trainee(student.model, student.preprocess).to(together.device)
    encoding = Encoding(
        trainee,
        student.preprocess,
        student.tokenizer,
        together.device,
        autocast,
        _BATCH,
        loader_count(config.loaders, together.device),
    )
    told.begin("caption vectors", len(texts), 0)
    captions = stored_vectors(
        config.output / "caption_vectors",
        digest([student.identity, *texts]),
        count=len(texts),
        dimensions=student.dimensions,
        encode=lambda rows: encoding.texts(texts, rows),
        together=together,
        on_items=told.advance,
    )
    told.begin("image vectors", len(images), 0)
    pictures = stored_vectors(
        config.output / "image_vectors",
        images_identity,
        count=len(images),
        dimensions=student.dimensions,
        encode=lambda rows: encoding.images(images.paths, rows),
        together=together,
        on_items=told.advance,
    )
    lost = unreadable_files(images.paths, pictures.failed, encoding.unreadable)
    for path in list(lost)[:NAMED]:
        told.note(f"{path} cannot be used ({lost[path]}): it has no captions, and is tried again at the next start")
    check_readable(lost, len(images), config.max_unreadable, "images")
    return pictures, captions.vectors


def _match_all(
    config: CaptionConfig,
    identity: str,
    image_vectors: Vectors,
    caption_vectors: Vectors,
    together: Processes,
    told: Listener,
) -> list[Path]:
    """One file per block of images: finished blocks of a killed run are kept."""
    folder = config.output / "matched" / identity[:16]
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(image_vectors), _IMAGES_AT_ONCE)
    blocks = [folder / f"{start:012d}.json" for start in starts]
    told.begin("match", len(image_vectors), 0)
    for number, (start, path) in enumerate(zip(starts, blocks, strict=True)):
        piece = image_vectors[start : start + _IMAGES_AT_ONCE]
        if number % together.world_size == together.rank and not path.exists():
            which, cosine = nearest_captions(piece, caption_vectors, top=config.top, device=together.device)
            keep = cosine > config.threshold
            best = cosine[:, 0].tolist()
            chosen = [
                [[int(row), round(float(value), 4)] for row, value, kept in zip(*line, strict=True) if kept]
                for line in zip(which, cosine, keep, strict=True)
            ]
            save_text(json.dumps({"best": best, "chosen": chosen}), path)
        told.advance(len(piece))
    return blocks


def _write_table(
    config: CaptionConfig,
    blocks: list[Path],
    images: LabelledImages,
    texts: list[str],
    pictures: Stored,
    together: Processes,
) -> CaptionReport:
    readable = np.ones(len(images), dtype=bool)
    readable[pictures.failed] = False
    named = [text_name(path) for path in images.paths]
    counts = np.zeros(len(images), dtype=np.int64)
    best = np.full(len(images), np.nan)

    def lines() -> Iterator[str]:
        rows = itertools.count()
        for block in blocks:
            matched = json.loads(block.read_text(encoding="utf-8"))
            for cosine, chosen in zip(matched["best"], matched["chosen"], strict=True):
                row = next(rows)
                own = chosen if readable[row] else []
                counts[row] = len(own)
                best[row] = cosine if readable[row] else np.nan
                label = images.labels[row]
                if named[row] is None:
                    continue
                described = {
                    "image": named[row],
                    "class": images.names[label] if label >= 0 else None,
                    "captions": [texts[place] for place, _ in own],
                    "cosines": [value for _, value in own],
                }
                yield json.dumps(described) + "\n"

    table = config.output / TABLE_FILE
    if together.first:
        save_lines(lines(), table)
    else:
        collections.deque(lines(), maxlen=0)
    known = best[~np.isnan(best)]
    low, middle, high = np.percentile(known if len(known) else [0.0], [10, 50, 90]).tolist()
    without = int((counts == 0).sum())
    notices = []
    unnamed = [show(os.fsencode(path)) for path, name in zip(images.paths, named, strict=True) if name is None]
    if unnamed:
        notices.append(
            f"left out of the table: {len(unnamed)} images whose names are not UTF-8, which JSON cannot hold "
            f"({', '.join(unnamed[:NAMED])}); rename them and start again"
        )
    if without > len(images) / 2:
        notices.append(
            f"{without} of {len(images)} images have no caption above {config.threshold}; the best caption's cosine is "
            f"{middle:.3f} for the middle image. Cosines differ by model: choose --threshold by those figures"
        )
    return CaptionReport(
        table=table,
        images=len(images),
        captions=int(counts.sum()),
        mean_per_image=float(counts.mean()),
        without=without,
        unreadable=int((~readable).sum()),
        best_cosine=(low, middle, high),
        notices=tuple(notices),
    )
