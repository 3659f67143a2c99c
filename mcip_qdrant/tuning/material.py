"""What a run trains on and what it is judged by: checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages, read_images
from mcip_qdrant.tuning.config import Metric, TuneConfig
from mcip_qdrant.tuning.hyper import Method

_NOTICES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Material:
    """Training images, validation images (None with the metric `last`), and what a person should know about both.

    Training labels are 0..C-1 without gaps where the method uses classes. Where it uses pairs every image has a caption.
    """

    training: LabelledImages
    validation: LabelledImages | None
    notices: tuple[str, ...]

    @property
    def captions(self) -> list[list[str]]:
        """Captions of the training images; empty lists where the data has none."""
        return self.training.captions or [[] for _ in self.training.paths]


def load_images(data: Path | LabelledImages) -> LabelledImages:
    """Read a folder of classes or a table, unless that was done."""
    return read_images(data) if isinstance(data, Path) else data


def prepare_material(config: TuneConfig) -> Material:
    """Read, check and split the data of a run.

    Raises:
        SourceError: the data cannot be read.
        TuningError: it lacks the classes or captions that the method needs, or nothing can be kept for validation.
    """
    method, metric = config.method, config.chosen_metric
    images = load_images(config.data)
    notices = list(images.notices)
    usable, left_out = _usable(images, method)
    notices += left_out
    if config.validation is not None:
        validation = None if metric == "last" else load_images(config.validation)
        training = usable
    elif metric == "last":
        training, validation = usable, None
    else:
        training, validation = _split(usable, method, config.hold_out, config.chosen_hyper.seed)
        if validation is not None:
            notices.append(f"kept for validation: {len(validation)} of {len(usable)} images")
    if validation is not None:
        _check_validation(validation, metric)
    if method == "mcip" and not any(training.captions or []):
        raise TuningError(
            f"none of the {len(training)} images left for training has a caption: those with captions are all kept for "
            "validation; give --validation DATA, or captions for more images"
        )
    training, said = _compact(training, method)
    hidden = len(notices) - _NOTICES_SHOWN
    if hidden > 0:
        notices = [*notices[:_NOTICES_SHOWN], f"{hidden} more notices of this kind"]
    return Material(training, validation, (*notices, *said))


def _usable(images: LabelledImages, method: Method) -> tuple[LabelledImages, list[str]]:
    captioned = np.array([bool(own) for own in images.captions or []], dtype=bool)
    if method in {"gpr", "mcip"}:
        if not (images.labels >= 0).any():
            raise TuningError(
                f"{method} learns from classes, and no image has one: give a folder of classes or a table"
            )
        if method == "mcip" and not captioned.any():
            raise TuningError("mcip needs captions for at least some images: `mcip-qdrant tune captions` finds them")
        keep = images.labels >= 0
        kind = "class"
    else:
        if not captioned.any():
            raise TuningError(
                f"{method} learns from captions, and no image has one: give a table with the column captions"
            )
        keep = captioned
        kind = "caption"
    dropped = int((~keep).sum())
    return images.where(keep), [f"left out: {dropped} images without {kind}"] if dropped else []


def _split(
    images: LabelledImages, method: Method, share: float, seed: int
) -> tuple[LabelledImages, LabelledImages | None]:
    """Whole classes for image search, whose point is classes never seen; single images where only captions count."""
    advice = "give --validation DATA, or --metric last to do without"
    if share == 0:
        raise TuningError(f"nothing to choose the best weights by: --hold-out is 0; {advice}")
    rng = np.random.default_rng([seed, 1])
    if method in {"gpr", "mcip"}:
        several = np.flatnonzero(images.counts() >= 2)
        wanted = max(2, round(share * len(several)))
        if len(several) < wanted + 2:
            raise TuningError(
                f"only {len(several)} classes have two images or more, too few to keep {wanted} from training; {advice}"
            )
        held = np.isin(images.labels, rng.choice(several, size=wanted, replace=False))
    else:
        wanted = max(2, round(share * len(images)))
        if len(images) < wanted + 2:
            raise TuningError(f"{len(images)} images are too few to keep {wanted} from training; {advice}")
        held = np.zeros(len(images), dtype=bool)
        held[rng.choice(len(images), size=wanted, replace=False)] = True
    return images.where(~held), images.where(held)


def _check_validation(validation: LabelledImages, metric: Metric) -> None:
    if metric in {"image-map", "mean"} and not (validation.counts() >= 2).any():
        raise TuningError(f"--metric {metric} needs validation images with classes of two or more; there are none")
    if metric in {"text-recall", "mean"} and not any(validation.captions or []):
        raise TuningError(f"--metric {metric} needs validation images with captions; there are none")


def _compact(images: LabelledImages, method: Method) -> tuple[LabelledImages, list[str]]:
    if method not in {"gpr", "mcip"}:
        return images, [f"training on {len(images)} images with captions"]
    occurring, labels = np.unique(images.labels, return_inverse=True)
    if len(occurring) < 2:
        raise TuningError(f"{method} learns to tell classes apart, and only one is left for training")
    names = [images.names[number] for number in occurring]
    counts = np.bincount(labels)
    said = [f"training on {len(images)} images of {len(names)} classes"]
    if method == "mcip":
        number = [len(own) for own in images.captions or []]
        said.append(f"captions per image: {np.mean(number):.1f} on average, none for {number.count(0)}")
    alone = [names[number] for number in np.flatnonzero(counts == 1)]
    if alone:
        said.append(
            f"{len(alone)} classes have one image ({_some(alone)}): kept, but they only push others away; "
            "give them a second image or leave them out"
        )
    return replace(images, labels=labels.astype(np.int64), names=names), said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
