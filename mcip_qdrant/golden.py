"""The golden set: pictures and texts with the vectors torch gave for them, carried inside every bundle.

`golden.npz` holds, for 64 pictures and 64 texts: the pictures as PNG files (`png`, `png_offsets`), SHA-256 of the preprocessed
pixels (`pixels_sha256`), the texts and their token ids (`texts`, `token_ids`) and torch's vectors (`image_vectors`,
`text_vectors`, float32 `[64, D]`, L2 norm 1). The digests tell which step differs when a vector does.
"""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import BundleError
from mcip_qdrant.manifest import Preprocess

FILE = "golden.npz"


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Pictures, texts and reference vectors, all in the same order."""

    pictures: tuple[bytes, ...]
    pixels_sha256: tuple[str, ...]
    texts: tuple[str, ...]
    token_ids: NDArray[np.int64]
    image_vectors: NDArray[np.float32]
    text_vectors: NDArray[np.float32]

    def pixels(self, config: Preprocess) -> NDArray[np.uint8]:
        """Decode and preprocess every picture: uint8 `[64, H, W, 3]`."""
        # Here, because a process that only encodes text opens bundles too, and needs no Pillow for that.
        from mcip_qdrant.decode import decode
        from mcip_qdrant.preprocess import preprocess

        return np.stack([preprocess(decode(picture).rgb, config) for picture in self.pictures])

    def save(self, directory: Path) -> None:
        """Write `golden.npz` into a directory."""
        np.savez_compressed(
            directory / FILE,
            png=np.frombuffer(b"".join(self.pictures), dtype=np.uint8),
            png_offsets=np.cumsum([0, *map(len, self.pictures)], dtype=np.int64),
            pixels_sha256=np.array(self.pixels_sha256),
            texts=np.array(self.texts),
            token_ids=self.token_ids,
            image_vectors=self.image_vectors,
            text_vectors=self.text_vectors,
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `golden.npz` from a bundle.

        Raises:
            BundleError: missing or damaged.
        """
        path = directory / FILE
        try:
            # A stream of our own: numpy leaves its file open where the archive is damaged.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                png = stored["png"].tobytes()
                offsets = stored["png_offsets"]
                return cls(
                    pictures=tuple(png[start:stop] for start, stop in itertools.pairwise(offsets)),
                    pixels_sha256=tuple(str(item) for item in stored["pixels_sha256"]),
                    texts=tuple(str(item) for item in stored["texts"]),
                    token_ids=stored["token_ids"],
                    image_vectors=stored["image_vectors"],
                    text_vectors=stored["text_vectors"],
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
            raise BundleError(f"{path}: golden set missing or damaged ({type(exc).__name__}: {exc})") from exc


def pixels_digests(pixels: NDArray[np.uint8]) -> tuple[str, ...]:
    """SHA-256 (hex) of each picture of uint8 `[B, H, W, 3]`."""
    return tuple(hashlib.sha256(np.ascontiguousarray(item).data).hexdigest() for item in pixels)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close two sets of unit vectors are, item by item and as a ranking."""

    minimum: float
    mean: float
    max_abs_difference: float
    top10_agreement: float
    worst_item: int


def compare(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Agreement:
    """Cosine per item, and the share of each item's ten nearest neighbours (itself excluded) that both sets agree on.

    Both `[N, D]` float32; cosines are taken in float64.
    """
    ours, theirs = vectors.astype(np.float64), reference.astype(np.float64)
    cosine = (ours * theirs).sum(axis=1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
    return Agreement(
        minimum=float(np.nan_to_num(cosine, nan=-1.0).min()),
        mean=float(np.nan_to_num(cosine, nan=-1.0).mean()),
        max_abs_difference=float(np.nan_to_num(np.abs(ours - theirs), nan=2.0).max()),
        top10_agreement=_shared_neighbours(ours, theirs, 10),
        worst_item=int(np.nan_to_num(cosine, nan=-1.0).argmin()),
    )


def _shared_neighbours(ours: NDArray[np.float64], theirs: NDArray[np.float64], k: int) -> float:
    def nearest(vectors: NDArray[np.float64]) -> Sequence[set[int]]:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return [set(row[:k].tolist()) for row in np.argsort(-scores, axis=1, kind="stable")]

    k = min(k, len(ours) - 1)
    pairs = zip(nearest(ours), nearest(theirs), strict=True)
    return float(np.mean([len(a & b) / k for a, b in pairs])) if k > 0 else 1.0
