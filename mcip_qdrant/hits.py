"""The answer to one search: hits in order, which a notebook shows as a grid of thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self, SupportsIndex, overload

from mcip_qdrant.hit import Hit

__all__ = ["Hit", "Hits"]


class Hits(list[Hit]):
    """A list of hits, best first. Slices are `Hits` too."""

    def __init__(self, hits: Iterable[Hit] = (), *, roots: Mapping[str, Path] | None = None) -> None:
        """Keep hits.

        Args:
            roots: where each source lies on this machine, for pictures whose uri is another machine's.
        """
        super().__init__(hits)
        self.roots = roots

    @overload
    def __getitem__(self, index: SupportsIndex) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Hit | Self:
        if isinstance(index, slice):
            return type(self)(super().__getitem__(index), roots=self.roots)
        return super().__getitem__(index)

    def groups(self) -> dict[str | int | None, Hits]:
        """The hits of each group, groups in the order of their best hit. One group None where the search did not group."""
        found: dict[str | int | None, Hits] = {}
        for hit in self:
            found.setdefault(hit.group, Hits(roots=self.roots)).append(hit)
        return found

    def _repr_html_(self) -> str:
        from mcip_qdrant.gallery import hits_html

        return hits_html(self, self.roots)
