"""Delete the points of images that a source no longer has. Guarded, because an unmounted disk looks like an empty archive."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import ImageRef, point_id
from mcip_qdrant.read import is_gone
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.source import ListingReport
from mcip_qdrant.spill import SeenNames, SortedNames

LARGEST_SHARE = 0.20


class SeenImages:
    """Point ids of all images a listing named; beyond some thousands, on disk."""

    def __init__(self) -> None:
        self._ids = SeenNames()

    def watch(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass references on and remember them."""
        for ref in refs:
            self._ids.add(uuid.UUID(ref.point_id).bytes)
            yield ref

    def __contains__(self, point_id: str) -> bool:
        return uuid.UUID(point_id).bytes in self._ids


def prune(
    sink: QdrantSink, source: str, root: Path, seen: SeenImages, listing: ListingReport, *, confirmed: bool
) -> int:
    """Delete this source's points whose images are gone: not listed, and not there under their name either.

    A listing leaves out more than what is gone: files whose suffix is no image's, and folders behind symbolic links.

    Args:
        root: folder of the source.
        confirmed: the user agreed to lose more than a fifth of the source's points.

    Returns:
        Number of points deleted.

    Raises:
        SourceError: the listing had errors, or too much would go. Nothing was deleted.
    """
    if listing.errors:
        raise SourceError(
            f"nothing was pruned: {len(listing.errors)} folder(s) could not be listed (the first: {listing.errors[0]}), "
            "so a missing image may only be out of sight"
        )
    total = count = 0
    gone = SortedNames()
    for point, key in sink.ids_of_source(source):
        if point != point_id(key):  # not ours: an adopted collection may have a field `source` of its own
            continue
        total += 1
        if point not in seen and is_gone(root, ImageRef(source, key.removeprefix(f"{source}/"))):
            gone.add(uuid.UUID(point).bytes)
            count += 1
    if count > LARGEST_SHARE * total and not confirmed:
        raise SourceError(
            f"nothing was pruned: {count} of the {total} images of source {source!r} are no longer there "
            f"({count / total:.0%}, more than {LARGEST_SHARE:.0%}). If that is right, say --prune --yes"
        )
    sink.delete(str(uuid.UUID(bytes=point)) for point in gone)
    return count
