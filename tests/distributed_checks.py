"""Archives of many small images, and what must be true once a distributed run over one has ended."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Cluster
from photos import write_archive

from mcip_qdrant.query import QueryEncoder

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "mcip-qdrant.image-key")
_DIFFERENT = 40


@dataclass(frozen=True)
class Archive:
    """A folder of images under a source name. `bad`: reason code by relative name, of those that cannot be embedded."""

    source: str
    folder: Path
    names: tuple[str, ...]
    pictures: tuple[Path, ...]
    bad: Mapping[str, str] = field(default_factory=dict)

    @property
    def good(self) -> list[str]:
        """Names of the images that must have a point."""
        return [name for name in self.names if name not in self.bad]

    def key(self, name: str) -> str:
        return f"{self.source}/{name}"

    def point_id(self, name: str) -> str:
        """The id that an image must have, worked out without the code under test."""
        return str(uuid.uuid5(_NAMESPACE, self.key(name)))


def make_archive(folder: Path, count: int, *, side: int = 64) -> Archive:
    """`count` files in sub-folders, with some dozens of different pictures in turn."""
    pictures = tuple(write_archive(folder.parent / f"{folder.name}-pictures", min(count, _DIFFERENT), side=side))
    names = []
    for index in range(count):
        name = f"{index // 1000:03}/img-{index:06}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures[index % len(pictures)], folder / name)
        names.append(name)
    return Archive(folder.name, folder, tuple(names), pictures)


@cache
def _vectors(bundle: Path, pictures: Sequence[Path]) -> Any:
    return QueryEncoder.open(bundle, device="cpu").images(list(pictures))


def assert_points(cluster: Cluster, archive: Archive) -> None:
    """Exactly one point for each good image: its id, its key, its own vector."""
    points = cluster.points()
    wanted = {archive.point_id(name): name for name in archive.good}
    assert len(wanted) == len(archive.good)
    assert len(points) == len(wanted)
    assert sorted(points) == sorted(wanted)
    vectors = _vectors(cluster.bundle, archive.pictures)
    for point, name in wanted.items():
        payload = points[point].payload or {}
        assert (payload["key"], payload["source"]) == (archive.key(name), archive.source)
    index = {name: number for number, name in enumerate(archive.names)}
    ids = list(wanted)
    found = np.asarray([points[one].vector for one in ids], dtype=np.float32)
    expected = vectors[[index[wanted[one]] % len(archive.pictures) for one in ids]]
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > 0.9999


def assert_ledger(cluster: Cluster, run: str, archive: Archive, *, unchanged: int | None = 0) -> dict[str, Any]:
    """submitted = embedded + unchanged + failed = number of images, and the dead letters are those expected."""
    said = cluster.status(run)
    assert said["complete"], said
    assert said["submitted"] == len(archive.names), said
    assert said["embedded"] + said["unchanged"] + said["failed"] == said["submitted"], said
    assert said["failed"] == len(archive.bad), said
    assert unchanged is None or said["unchanged"] == unchanged, said
    if archive.bad:
        assert failures(cluster, run) == {archive.key(name): reason for name, reason in archive.bad.items()}
    return said


def failures(cluster: Cluster, run: str) -> dict[str, str]:
    """key -> reason, as `mcip-qdrant failures` says."""
    done = cluster.run("failures", run, "--json", expect=None)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == (3 if rows else 0)
    assert all(sorted(row) == ["key", "message", "reason"] and row["message"] for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["reason"] for row in rows}


def written_again(cluster: Cluster) -> int:
    """Writes of points that had been written before."""
    return sum(cluster.proxy.upserts.values()) - len(cluster.proxy.upserts)


def taken_again(cluster: Cluster) -> int:
    """Images that an attempt at a chunk began with although another attempt had; each attempt looks its images up once."""
    return sum(cluster.proxy.lookups.values()) - len(cluster.proxy.lookups)
