"""How good the weights are at the moment: the metric that the best checkpoint is chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.evaluation.metrics import caption_retrieval, full_ranking_map
from mcip_qdrant.tuning.config import Metric
from mcip_qdrant.tuning.encode import Encoding, Vectors
from mcip_qdrant.tuning.files import check_readable, unreadable_files
from mcip_qdrant.tuning.pictures import EvaluationPictures, Failure, Pixels

_RECALL_AT: Final = 5
_KEPT_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Grade:
    """The metric, 0..1, higher is better, nan where the model's vectors are not finite; and the rows that did not count."""

    value: float
    left_out: list[int]


class Exam:
    """A fixed set of validation images, measured as often as one likes.

    Pictures are decoded once if they fit in a gigabyte. Vectors of a frozen tower are computed once.

    Args:
        images: validation images; their classes and captions decide what can be measured.
        metric: what `grade` returns.
        encoding: the model under training.
        frozen_images, frozen_texts: which tower does not move.
        max_unreadable: share of the images, 0..1, that may be unreadable.
    """

    def __init__(
        self,
        images: LabelledImages,
        metric: Metric,
        encoding: Encoding,
        *,
        frozen_images: bool,
        frozen_texts: bool,
        max_unreadable: float,
    ) -> None:
        self._metric = metric
        self._encoding = encoding
        self._frozen_images = frozen_images
        self._frozen_texts = frozen_texts
        self._max_unreadable = max_unreadable
        self._paths = images.paths
        self._labels = images.labels
        captions = images.captions or [[] for _ in images.paths]
        self._captions = [text for own in captions for text in own]
        self._image_of = np.array([row for row, own in enumerate(captions) for _ in own], dtype=np.int64)
        height, width = encoding.preprocess.size
        self._keep = len(images) * height * width * 3 <= _KEPT_BYTES
        self._pictures: list[Pixels | Failure] = []
        self._image_vectors: Vectors | None = None
        self._text_vectors: Vectors | None = None

    def grade(self, left_out: Sequence[int] | None) -> Grade:
        """Measure the weights as they are.

        Args:
            left_out: rows that did not count at the first evaluation, as only figures of the same images can be compared;
                None at the first.

        Raises:
            TuningError: an image cannot be read now that could be read at first; at first, too many cannot; or the metric is
                not defined, as no image has a partner.
        """
        images = self._images()
        failed = np.flatnonzero(~images.any(axis=1)).tolist()
        reasons = unreadable_files(self._paths, failed, self._encoding.unreadable)
        if left_out is None:
            check_readable(reasons, len(self._paths), self._max_unreadable, "validation images")
            left_out = failed
        elif lost := [row for row in failed if row not in set(left_out)]:
            path = str(self._paths[lost[0]])
            raise TuningError(
                f"{len(lost)} validation images could be read before and cannot be now (the first: {path}: {reasons[path]}); "
                "a metric of fewer images would choose other weights"
            )
        readable = np.ones(len(images), dtype=bool)
        readable[list(left_out)] = False
        if not np.isfinite(images).all():
            return Grade(float("nan"), list(left_out))
        grades = []
        if self._metric in {"image-map", "mean"}:
            found = full_ranking_map(images[readable], self._labels[readable], query_in_ranking=False)
            grades.append(found.mean)
        if self._metric in {"text-recall", "mean"}:
            texts = self._texts()
            if not np.isfinite(texts).all():
                return Grade(float("nan"), list(left_out))
            grades.append(self._text_recall(images, texts, readable))
        grade = float(np.mean(grades))
        if np.isnan(grade):
            raise TuningError(f"{self._metric} cannot be measured: too few validation images can be read")
        return Grade(grade, list(left_out))

    def why(self, row: int) -> str:
        """A validation file that cannot be read, and the reason."""
        path = str(self._paths[row])
        return f"{path} ({self._encoding.unreadable.get(path, 'read error')})"

    def _text_recall(self, images: Vectors, texts: Vectors, readable: NDArray[np.bool_]) -> float:
        asked = readable[self._image_of]
        place = np.cumsum(readable) - 1
        scores = caption_retrieval(
            images[readable], texts[asked], place[self._image_of[asked]].astype(np.int64), ks=(_RECALL_AT,)
        )
        return scores.text_to_image[_RECALL_AT].mean

    def _images(self) -> Vectors:
        if self._image_vectors is not None:
            return self._image_vectors
        vectors = _stack(list(self._image_batches()))
        if self._frozen_images:
            self._image_vectors = vectors
        return vectors

    def _image_batches(self) -> Sequence[Vectors]:
        rows = range(len(self._paths))
        if not self._keep:
            return list(self._encoding.images(self._paths, rows))
        if not self._pictures:
            pictures = EvaluationPictures(self._paths, self._encoding.preprocess)
            self._pictures = [pictures[row] for row in rows]
        size = self._encoding.batch_size
        return [self._encoding.pictures(self._pictures[start : start + size]) for start in range(0, len(rows), size)]

    def _texts(self) -> Vectors:
        if self._text_vectors is not None:
            return self._text_vectors
        vectors = np.concatenate(list(self._encoding.texts(self._captions, range(len(self._captions)))))
        if self._frozen_texts:
            self._text_vectors = vectors
        return vectors


def _stack(batches: Sequence[Vectors]) -> Vectors:
    """One array; a batch of failures alone does not know the length of a vector."""
    width = max(batch.shape[1] for batch in batches)
    return np.concatenate(
        [batch if batch.shape[1] else np.zeros((len(batch), width), dtype=np.float32) for batch in batches]
    )
