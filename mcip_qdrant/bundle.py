"""A bundle: the directory that carries one model from export to every worker and query process. Immutable once written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from mcip_qdrant import golden
from mcip_qdrant.errors import BundleError
from mcip_qdrant.golden import GoldenSet
from mcip_qdrant.manifest import Graph, Manifest, Precision, Tower
from mcip_qdrant.tokenizer import Tokenizer

MANIFEST_FILE = "manifest.json"
_READ_BYTES = 1 << 20


class Bundle:
    """An opened bundle. Opening reads the manifest and compares file sizes; graphs are loaded by the encoders."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a bundle directory.

        Raises:
            BundleError: no bundle there, an unfinished export, another format version, a file missing or truncated.
        """
        directory = Path(path)
        try:
            text = (directory / MANIFEST_FILE).read_text(encoding="utf-8")
        except FileNotFoundError as exc:
            what = (
                "has no manifest.json (not a bundle, or an export that did not finish)"
                if directory.is_dir()
                else "does not exist"
            )
            raise BundleError(
                f"bundle {directory} {what}. Make one with: mcip-qdrant export --model NAME --checkpoint FILE --output {directory}"
            ) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(f"bundle {directory}: cannot read {MANIFEST_FILE}: {exc}") from exc
        try:
            manifest = Manifest.from_json(text)
        except BundleError as exc:
            raise BundleError(f"bundle {directory}: {exc}") from exc
        bundle = cls(directory, manifest)
        bundle._check_sizes()
        return bundle

    @property
    def space_id(self) -> str:
        """SHA-256 (hex) that names the vector space; equal ids mean comparable vectors."""
        return self.manifest.space_id

    @property
    def embedding_dim(self) -> int:
        """D: length of each vector."""
        return self.manifest.embedding_dim

    def graph(self, tower: Tower, precision: Precision) -> Graph:
        """The graph of one tower in one precision.

        Raises:
            BundleError: the bundle was exported without it.
        """
        for graph in self.manifest.graphs:
            if (graph.tower, graph.precision) == (tower, precision):
                return graph
        have = ", ".join(sorted({graph.precision for graph in self.manifest.graphs if graph.tower == tower}))
        raise BundleError(
            f"bundle {self.directory} has no {precision} graph of the {tower} tower (it has {have}); "
            f"export again with --precision {have.replace(', ', ',')},{precision}"
        )

    def tokenizer(self) -> Tokenizer:
        """The text tower's tokenizer."""
        return Tokenizer.open(self.directory, self.manifest.tokenizer)

    def golden(self) -> GoldenSet:
        """The golden set that `verify` compares with.

        Raises:
            BundleError: missing, damaged, or of another dimension than the manifest says.
        """
        found = GoldenSet.load(self.directory)
        for vectors in (found.image_vectors, found.text_vectors):
            if vectors.ndim != 2 or vectors.shape[1] != self.embedding_dim:
                raise BundleError(
                    f"bundle {self.directory}: {golden.FILE} holds vectors of shape {list(vectors.shape)}, "
                    f"the manifest says {self.embedding_dim} dimensions"
                )
        return found

    def check_hashes(self, *graphs: Graph, on_bytes: Callable[[int], object] | None = None) -> None:
        """Re-read files and compare their SHA-256 with the manifest: the given graphs, or everything.

        Args:
            on_bytes: called with the number of bytes just read, for a progress bar.

        Raises:
            BundleError: naming the first file that was altered.
        """
        for name, expected in self._digests(graphs or self.manifest.graphs):
            if file_sha256(self.directory / name, on_bytes) != expected:
                raise BundleError(f"bundle {self.directory}: {name} was altered after the export (SHA-256 differs)")

    def _digests(self, graphs: tuple[Graph, ...]) -> Iterator[tuple[str, str]]:
        yield self.manifest.tokenizer.file, self.manifest.tokenizer.sha256
        yield golden.FILE, self.manifest.golden_sha256
        for graph in graphs:
            yield from graph.sha256.items()

    def _check_sizes(self) -> None:
        for graph in self.manifest.graphs:
            for name, expected in graph.bytes.items():
                try:
                    found = (self.directory / name).stat().st_size
                except OSError as exc:
                    raise BundleError(f"bundle {self.directory}: {name} is missing: {exc.strerror}") from exc
                if found != expected:
                    raise BundleError(
                        f"bundle {self.directory}: {name} has {found} bytes instead of {expected} (truncated or altered); copy it again"
                    )


def file_sha256(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """SHA-256 (hex) of a file, read in pieces.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
    except OSError as exc:
        raise BundleError(f"{path}: cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()
