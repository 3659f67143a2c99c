"""Taking over a collection that other software filled: only after some of its own images give the vectors that it holds.

A dimension proves nothing: many models share one. So a random sample of points whose files can be read here is encoded anew and
compared with the stored vectors. Vectors of another model, or of the same model with other preprocessing, do not pass.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcip_qdrant.collection import adoptable, claim
from mcip_qdrant.errors import ForeignCollectionError, ImageError, SpaceMismatchError
from mcip_qdrant.keys import decode_path, path_from_uri
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

PROBED = 16
"""At most so many images are encoded anew."""
FEWEST = 4
"""Fewer prove nothing, unless the collection has no more."""
SAME = 0.98
"""Cosine from which a stored vector counts as this model's: other decoders and precisions stay above, other models far below."""
SHARE = 4 / 5
"""Share of the probed images that must reach it: a file may have changed since it was embedded."""
PATH_FIELDS = ("uri", "key", "path", "file_path", "filepath", "image_path", "filename", "file_name", "file")
"""Payload fields that are looked into for a path, in this order."""

_SAMPLE = 512
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """What encoding some images of a collection anew has shown: the cosine to the stored vector, by point id."""

    cosines: Mapping[str, float]
    sampled: int

    @property
    def agreeing(self) -> int:
        """How many images gave the vector that is stored."""
        return sum(cosine >= SAME for cosine in self.cosines.values())

    @property
    def passed(self) -> bool:
        """Enough images could be tried, and enough of them agreed. An empty collection passes: nothing in it is wrong."""
        return self.enough and self.agreeing >= SHARE * len(self.cosines)

    @property
    def enough(self) -> bool:
        """Enough images could be tried."""
        return len(self.cosines) >= min(FEWEST, self.sampled)

    def __str__(self) -> str:
        if not self.cosines:
            return f"0 of {self.sampled} sampled points could be tried"
        return (
            f"{self.agreeing} of {len(self.cosines)} images gave the stored vector (cosine at least {SAME}; lowest "
            f"{min(self.cosines.values()):.4f}, median {statistics.median(self.cosines.values()):.4f})"
        )


def adopt(
    client: QdrantClient,
    name: str,
    encoder: QueryEncoder,
    *,
    roots: Mapping[str, Path] | None = None,
    path_field: str | None = None,
    without_probe: bool = False,
) -> Probe | None:
    """Declare that a collection made by other software holds the vectors of the encoder's model, after checking some of them.

    Args:
        roots: folders on this machine in which relative paths are looked up; the first part of a path may be a root's name.
        path_field: payload field that names each image's file; default: the first of `PATH_FIELDS` that leads to one.
        without_probe: take a person's word for it, and check dimension and distance only.

    Returns:
        What the probe found; None where there was none, because nobody wanted it or the collection is this model's already.

    Raises:
        StoreError: no such collection, or Qdrant failed.
        SpaceMismatchError: it belongs to another model, its vectors have another size, distance or name, or they are not what the
            model gives.
        ForeignCollectionError: too few of its images can be read here to tell.
    """
    store, manifest = Store.of(client), encoder.bundle.manifest
    if not adoptable(store, name, manifest):
        return None
    found = None
    if not without_probe:
        found = probe(store, name, encoder, roots=roots or {}, path_field=path_field)
        _require(found, name, manifest.model, path_field)
    claim(store, name, manifest)
    return found


def probe(
    store: Store, name: str, encoder: QueryEncoder, *, roots: Mapping[str, Path], path_field: str | None = None
) -> Probe:
    """Encode up to 16 images of a collection anew and compare them with the stored vectors.

    Raises:
        StoreError: Qdrant failed.
    """
    sample = _sample(store, name)
    fields = PATH_FIELDS if path_field is None else (path_field,)
    cosines: dict[str, float] = {}
    for point in sample:
        if len(cosines) == PROBED:
            break
        path = next(_files(point.payload or {}, fields, roots), None)
        if path is None:
            continue
        try:
            vector = encoder.image(path)
        except ImageError:
            continue
        cosine = _cosine(vector, _stored_vector(store, name, point.id))
        if cosine is not None:
            cosines[str(point.id)] = cosine
    return Probe(cosines, len(sample))


def _require(found: Probe, name: str, model: str, path_field: str | None) -> None:
    if not found.enough:
        looked_at = path_field or ", ".join(PATH_FIELDS)
        raise ForeignCollectionError(
            f"collection {name!r} cannot be probed: of {found.sampled} sampled points only {len(found.cosines)} lead to an image that "
            f"can be read here, at least {min(FEWEST, found.sampled)} are needed. Say where the files lie (--source-root DIR) and "
            f"which payload field names them (--path-field; looked at: {looked_at}). If you know that {model} made these vectors, "
            "--without-probe takes your word for it"
        )
    if not found.passed:
        raise SpaceMismatchError(
            f"collection {name!r} does not hold the vectors of {model}: {found}; at least {SHARE:.0%} of them must. Another model "
            "made it, or the same one with other preprocessing: ingest the images into a collection of their own. (If the files "
            "changed since, --without-probe adopts it all the same.)"
        )


def _sample(store: Store, name: str) -> list[models.ScoredPoint]:
    from qdrant_client import models

    query = models.SampleQuery(sample=models.Sample.RANDOM)
    return store.call(
        lambda client: client.query_points(name, query=query, limit=_SAMPLE, with_payload=True), attempts=_ATTEMPTS
    ).points


def _stored_vector(store: Store, name: str, point: Any) -> Any:
    records = store.call(
        lambda client: client.retrieve(name, [point], with_payload=False, with_vectors=True), attempts=_ATTEMPTS
    )
    return records[0].vector if records else None


def _cosine(vector: Any, stored: Any) -> float | None:
    other = np.asarray(stored if isinstance(stored, list) else [], dtype=np.float64)
    if other.shape != vector.shape or not other.any():
        return None
    return float(vector.astype(np.float64) @ other / np.linalg.norm(other))


def _files(payload: Mapping[str, Any], fields: Iterable[str], roots: Mapping[str, Path]) -> Iterator[Path]:
    """Regular files that a payload may mean."""
    for field in fields:
        value = payload.get(field)
        if not isinstance(value, str) or not value:
            continue
        local = path_from_uri(value)
        # Our own keys and uris are percent-encoded; other software writes names as they are.
        for raw in (local,) if local is not None else (os.fsencode(value), decode_path(value)):
            path = Path(os.fsdecode(raw))
            for candidate in (path,) if path.is_absolute() else _below(path, roots):
                if _is_file(candidate):
                    yield candidate


def _below(path: Path, roots: Mapping[str, Path]) -> Iterator[Path]:
    if len(path.parts) > 1 and path.parts[0] in roots:
        yield roots[path.parts[0]].joinpath(*path.parts[1:])
    for root in roots.values():
        yield root / path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False
