"""One run on one machine: check the collection, list the source, run the pipeline, prune."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from mcip_qdrant import pipeline
from mcip_qdrant.bulk import bulk_load
from mcip_qdrant.bundle import Bundle
from mcip_qdrant.collection import ensure_collection, own_name, register_source
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder
from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.manifest import Precision
from mcip_qdrant.pipeline import Hooks, PipelineSettings
from mcip_qdrant.points import DecodeMode, RunStamp
from mcip_qdrant.prune import SeenImages, prune
from mcip_qdrant.report import RunReport
from mcip_qdrant.session import CUDA_PROVIDER, Device
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.source import ListingReport, Source
from mcip_qdrant.store import Store

_BATCHES_AT_ONCE = 4
WRITE_SIZE = 64
"""Points per request to a server: Qdrant's advice is 64 to 256."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What a user can choose. `batch_size` None means 8 on the CPU and 64 on CUDA; `decode_threads` None means one per CPU."""

    collection: str = "images"
    decode: DecodeMode = "exact"
    checksum: bool = False
    prune: bool = False
    confirmed: bool = False
    source_moved: bool = False
    bulk: bool = False
    indexes: Mapping[str, str] = field(default_factory=dict)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    batch_size: int | None = None
    decode_threads: int | None = None
    columns: Callable[[ImageRef], Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Outcome of a run, for people and for `--json`. `prune_refused` says why nothing was pruned, if it was asked for."""

    run_id: str
    report: RunReport
    listing: ListingReport
    pruned: int
    prune_refused: str | None
    collection_created: bool
    points: int


def open_encoder(bundle: Bundle, device: Device, precision: Precision) -> ImageEncoder:
    """The image encoder as a bulk load wants it: on the CPU several batches side by side, each with a share of the cores.

    Threads that work on one operator wait for the slowest of them at its end; threads with a batch each do not
    (docs/adr/0006). At most four batches at once, for the memory that each takes.

    Raises:
        BundleError, DeviceError, MissingExtraError: as `ImageEncoder`.
    """
    cpus = available_cpus()
    return ImageEncoder(bundle, EncoderSettings(device, precision, threads=max(1, cpus // min(cpus, _BATCHES_AT_ONCE))))


def default_batch_size(encoder: ImageEncoder) -> int:
    """Images per model call, unless the user says otherwise."""
    return 64 if encoder.provider == CUDA_PROVIDER else 8


def new_run_id() -> str:
    """A run id that sorts by time and is unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def timestamp() -> str:
    """The time now, as payloads have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def ingest(
    source: Source,
    bundle: Bundle,
    encoder: ImageEncoder,
    store: Store,
    options: IngestOptions,
    hooks: Hooks | None = None,
) -> IngestResult:
    """Bring a collection up to date with a source.

    Raises:
        ConfigurationError: the collection belongs to another model or to nobody.
        SourceError: the source name stands for another folder, or no image was found.
        StoreError: Qdrant refused or stayed away.
    """
    hooks = hooks or Hooks()
    if options.prune and not source.complete:
        raise SourceError("--prune needs a folder: a list does not say which images are gone")
    listing, seen = ListingReport(), SeenImages()
    refs = references(source, listing, may_be_empty=options.prune or not source.complete)
    created = ensure_collection(store, options.collection, bundle.manifest, options.indexes)
    # An alias may move before the run ends.
    collection = own_name(store, options.collection)
    register_source(store, collection, source.name, source.root, moved=options.source_moved)
    run_id = new_run_id()
    settings = _pipeline_settings(source, bundle, encoder, options, run_id, 1 if store.embedded else WRITE_SIZE)
    sink = QdrantSink(store, collection)
    with bulk_load(store, collection, defer=options.bulk):
        report = pipeline.run(seen.watch(refs) if options.prune else refs, encoder, sink, settings, hooks)
    pruned, refused = 0, None
    if options.prune and not report.interrupted:
        try:
            pruned = prune(sink, source.name, source.root, seen, listing, confirmed=options.confirmed)
        except SourceError as exc:
            refused = str(exc)
    return IngestResult(run_id, report, listing, pruned, refused, created, sink.count())


def references(source: Source, listing: ListingReport, *, may_be_empty: bool) -> Iterator[ImageRef]:
    """List the source; a folder without any image is told before a collection is made or a source name is taken."""
    refs = source(listing)
    if may_be_empty:
        return refs
    first = next(refs, None)
    if first is None:
        raise SourceError(_nothing_found(source, listing))
    return itertools.chain([first], refs)


def _pipeline_settings(
    source: Source, bundle: Bundle, encoder: ImageEncoder, options: IngestOptions, run_id: str, write_size: int
) -> PipelineSettings:
    stamp = RunStamp(run_id, timestamp(), options.decode)
    settings = PipelineSettings(
        stamp=stamp,
        roots={source.name: source.root},
        preprocess=bundle.manifest.preprocess,
        batch_size=options.batch_size or default_batch_size(encoder),
        decode_threads=options.decode_threads or available_cpus(),
        limits=options.limits,
        checksum=options.checksum,
        encodes_at_once=encoder.batches_at_once,
        write_size=write_size,
    )
    return settings if options.columns is None else replace(settings, columns=options.columns)


def _nothing_found(source: Source, listing: ListingReport) -> str:
    message = f"no images below {source.root}"
    if listing.skipped:
        message += f"; skipped: {', '.join(f'{count} {kind}' for kind, count in listing.skipped.most_common())}"
    if listing.errors:
        message += f"; not listed: {'; '.join(listing.errors)}"
    return message + ". If the images have unusual suffixes, say --all-files"
