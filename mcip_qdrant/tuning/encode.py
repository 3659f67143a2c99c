"""Images and texts -> vectors with the torch model, in eval mode, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.tuning.pictures import EvaluationPictures, Failure, Pixels
from mcip_qdrant.tuning.trainees import Trainee

Vectors = NDArray[np.float32]


@dataclass(slots=True)
class Encoding:
    """How vectors are computed: the module, where, in which precision. `unreadable` collects path -> reason."""

    trainee: Trainee
    preprocess: Preprocess
    tokenizer: Any
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    batch_size: int
    loaders: int
    unreadable: dict[str, str] = field(default_factory=dict)

    def images(self, paths: Sequence[Path], rows: Sequence[int]) -> Iterator[Vectors]:
        """Vectors of `paths[row]` for every row, in order: float32 `[b, D]`, unit norm, zeros where a file is unreadable.

        Rows are nan where the model itself overflows; for texts too.
        """
        pictures = Subset(EvaluationPictures(paths, self.preprocess), rows)
        loader: DataLoader[Pixels | Failure] = DataLoader(
            pictures, batch_size=self.batch_size, num_workers=self.loaders, collate_fn=list
        )
        batch: list[Pixels | Failure]
        for batch in loader:
            yield self.pictures(batch)

    def pictures(self, batch: Sequence[Pixels | Failure]) -> Vectors:
        """Vectors of one batch of prepared pictures: float32 `[b, D]`, zeros for failures."""
        good = [number for number, item in enumerate(batch) if not isinstance(item, Failure)]
        for item in batch:
            if isinstance(item, Failure):
                self.unreadable[item.path] = item.reason
        made = np.zeros((len(batch), 0), dtype=np.float32)
        if good:
            pixels = torch.from_numpy(np.stack([item for item in batch if not isinstance(item, Failure)]))
            vectors = self._run(self.trainee.images, pixels)
            made = np.zeros((len(batch), vectors.shape[1]), dtype=np.float32)
            made[good] = vectors
        return made

    def texts(self, texts: Sequence[str], rows: Sequence[int]) -> Iterator[Vectors]:
        """Vectors of `texts[row]` for every row, in order: float32 `[b, D]`, unit norm."""
        for start in range(0, len(rows), self.batch_size):
            chosen = [texts[row] for row in rows[start : start + self.batch_size]]
            yield self._run(self.trainee.texts, self.tokenizer(chosen))

    def _run(self, tower: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> Vectors:
        was_training = self.trainee.training
        self.trainee.eval()
        try:
            with torch.inference_mode(), self.autocast():
                made = tower(batch.to(self.device)).float()
            vectors: Vectors = torch.nn.functional.normalize(made, dim=-1).cpu().numpy()
            # Numbers beyond float32 become zeros here, which mean an unreadable file to others.
            vectors[~vectors.any(axis=1)] = np.nan
            return vectors
        finally:
            self.trainee.train(was_training)
