"""Draws -> the tensors of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mcip_qdrant.tuning.order import Order, StepsFrom
from mcip_qdrant.tuning.pictures import Failure, Sample

_TEXTS_KEPT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step, by the names that the trainee's `forward` has, and image files that could not be used.

    With `lost` there are none, because so many files one after the other could not be read.
    """

    tensors: dict[str, torch.Tensor]
    failures: tuple[Failure, ...]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader process hands over: image numbers int64 `[B]`, pixels and token ids where the method has them."""

    indices: NDArray[np.int64]
    pixels: torch.Tensor | None
    token_ids: torch.Tensor | None
    failures: tuple[Failure, ...]
    lost: bool = False


class Collate:
    """Samples -> one `Loaded`; runs in the loader process, so that texts become tokens there."""

    def __init__(self, captions: Sequence[Sequence[str]], tokenizer: Any) -> None:
        self._captions = captions
        self._tokenizer = tokenizer
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, samples: Sequence[Sample]) -> Loaded:
        for sample in samples:
            if sample.lost:
                return Loaded(np.empty(0, dtype=np.int64), None, None, sample.failures, lost=True)
        pixels = [torch.from_numpy(sample.pixels) for sample in samples if sample.pixels is not None]
        texts = [self._captions[item.index][item.caption] for item in samples if item.caption is not None]
        return Loaded(
            np.array([sample.index for sample in samples], dtype=np.int64),
            torch.stack(pixels) if pixels else None,
            torch.stack([self._tokens(text) for text in texts]) if texts else None,
            tuple(failure for sample in samples for failure in sample.failures),
        )

    def _tokens(self, text: str) -> torch.Tensor:
        found = self._kept.get(text)
        if found is None:
            found = self._tokenizer([text])[0]
            if len(self._kept) < _TEXTS_KEPT:
                self._kept[text] = found
        return found


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """Distinct captions as vectors of the frozen text tower, and which of them each image has.

    `vectors` is float32 `[M, D]`; `of_image[i]` holds sorted int64 rows of it.
    """

    vectors: NDArray[np.float32]
    of_image: Sequence[NDArray[np.int64]]

    def of_batch(self, everywhere: Sequence[int], here: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions of a whole batch, and which of them belong to each image of this process.

        Equal captions are one column: a text that belongs to two images would otherwise be right and wrong at once.

        Args:
            everywhere: image numbers of all processes.
            here: image numbers of this process.

        Returns:
            float32 `[M, D]`, bool `[B, M]`.
        """
        columns = np.unique(np.concatenate([self.of_image[index] for index in (*everywhere, *here)]))
        positives = np.stack([np.isin(columns, self.of_image[index], assume_unique=True) for index in here])
        return torch.from_numpy(np.array(self.vectors[columns])), torch.from_numpy(positives)


def distinct(captions: Sequence[Sequence[str]]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Every caption once, in order of first sight, and the numbers of each image's own."""
    number: dict[str, int] = {}
    rows = [
        np.array(sorted({number.setdefault(text, len(number)) for text in own}), dtype=np.int64) for own in captions
    ]
    return list(number), rows


class Batches:
    """The batches of a run from one step on.

    Args:
        samples: draws -> samples.
        collate: samples -> tensors.
        order: which draws come when.
        device: where the tensors go.
        loaders: processes that prepare samples; 0 does it here.
        labels: int64 `[N]` class numbers, where the method learns from classes.
        table: captions, where the method uses many per image.
        image_vectors: float32 `[N, D]`, where the image tower is frozen.
    """

    def __init__(
        self,
        samples: Dataset[Sample],
        collate: Collate,
        order: Order,
        *,
        device: torch.device,
        loaders: int,
        labels: NDArray[np.int64] | None = None,
        table: CaptionTable | None = None,
        image_vectors: NDArray[np.float32] | None = None,
    ) -> None:
        self.order = order
        self._samples = samples
        self._collate = collate
        self._device = device
        self._loaders = loaders
        self._labels = labels
        self._table = table
        self._image_vectors = image_vectors

    def starting_at(self, step: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from `step` to the last."""
        loader: DataLoader[Sample] = DataLoader(
            self._samples,
            batch_sampler=StepsFrom(self.order, step),
            collate_fn=self._collate,
            num_workers=self._loaders,
            pin_memory=self._device.type == "cuda",
        )
        loaded: Loaded
        for number, loaded in enumerate(loader, start=step):
            yield number, self._assemble(number, loaded)

    def _assemble(self, step: int, loaded: Loaded) -> Batch:
        if loaded.lost:
            return Batch({}, loaded.failures, lost=True)
        tensors: dict[str, torch.Tensor] = {}
        if loaded.pixels is not None:
            tensors["pixels"] = loaded.pixels
        if loaded.token_ids is not None:
            tensors["token_ids"] = loaded.token_ids
        if self._labels is not None:
            tensors["labels"] = torch.from_numpy(self._labels[loaded.indices])
        if self._image_vectors is not None:
            tensors["image_vectors"] = torch.from_numpy(np.array(self._image_vectors[loaded.indices]))
        if self._table is not None:
            # Other processes may have replaced an unreadable image; then its first choice lends its captions as negatives.
            everywhere = [draw.index for draw in self.order.everywhere(step)]
            tensors["captions"], tensors["positives"] = self._table.of_batch(everywhere, loaded.indices.tolist())
        placed = {name: value.to(self._device, non_blocking=True) for name, value in tensors.items()}
        return Batch(placed, loaded.failures)
