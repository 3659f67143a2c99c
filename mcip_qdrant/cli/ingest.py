"""`mcip-qdrant ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mcip_qdrant.cli.ingest_broker import BrokerOptions, ingest_by_broker
from mcip_qdrant.cli.ingest_input import chosen_source, own_files, parse_indexes, raise_pillow_limit
from mcip_qdrant.cli.ingest_output import ProgressBar, print_result, stop_on_interrupt
from mcip_qdrant.cli.options import (
    ANY_PATH,
    broker_option,
    bundle_option,
    connect,
    device_option,
    json_option,
    precision_option,
    say_device,
    store_options,
)
from mcip_qdrant.exit_codes import INTERRUPTED, SOME_FAILED
from mcip_qdrant.manifest import Precision

if TYPE_CHECKING:
    from mcip_qdrant.ingest import IngestResult


@click.command("ingest")
@click.argument("folder", required=False, type=ANY_PATH)
@bundle_option
@store_options
@device_option
@precision_option
@click.option(
    "--source", "source_name", metavar="NAME", help="Name of the archive in keys. Default: the folder's base name."
)
@click.option(
    "--moved", is_flag=True, help="The archive of this name moved to this folder: accept it and keep its points."
)
@click.option(
    "--list",
    "list_file",
    type=click.Path(path_type=Path, readable=False, allow_dash=True),
    metavar="FILE|-",
    help="Ingest the paths in FILE (or stdin), one per line, relative to FOLDER (default: the current directory) or absolute below it.",
)
@click.option(
    "-0",
    "--null",
    "null_separated",
    is_flag=True,
    help="Paths in --list end with NUL instead of a newline (find -print0).",
)
@click.option("--all-files", is_flag=True, help="Try every file, whatever its suffix.")
@click.option(
    "--columns",
    "columns_file",
    type=ANY_PATH,
    metavar="FILE.csv|jsonl",
    help="Own payload fields, joined by column `key` or `path`.",
)
@click.option(
    "--index",
    "indexes",
    multiple=True,
    metavar="FIELD:TYPE",
    callback=parse_indexes,
    help="Payload index, made before the load (servers only). Repeatable.",
)
@click.option(
    "--checksum", is_flag=True, help="Compare SHA-256 instead of size and modification time to find changed images."
)
@click.option(
    "--decode",
    type=click.Choice(["exact", "scaled"]),
    default="exact",
    show_default=True,
    help="scaled: JPEGs are decoded at reduced size, much faster for camera-size photos, slightly different vectors.",
)
@click.option(
    "--bulk",
    is_flag=True,
    help="For one large load into a server: no HNSW links are built meanwhile, and all of them once afterwards.",
)
@click.option("--prune", is_flag=True, help="Afterwards delete this source's points whose images are gone.")
@click.option("--yes", is_flag=True, help="Let --prune delete more than 20 % of the source.")
@click.option(
    "--failures",
    "failures_file",
    type=ANY_PATH,
    default="failures.jsonl",
    show_default=True,
    help="Where to list images that failed: key, reason, message. Rewritten by each run.",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), help="Images per model call. Default: 8 on the CPU, 64 on CUDA."
)
@click.option("--decode-threads", type=click.IntRange(1, 256), help="Default: one per CPU this process may use.")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=89_478_485,
    show_default=True,
    help="Larger pictures are refused before they are decoded.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=256 * 1024 * 1024,
    show_default=True,
    help="Larger files are refused.",
)
@broker_option(required=False)
@click.option(
    "--chunk-size",
    type=click.IntRange(1, 4096),
    default=256,
    show_default=True,
    help="With --broker: images per task. A run that is resumed keeps its own.",
)
@click.option(
    "--look-ahead",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="With --broker: how many chunks may wait in the queue.",
)
@click.option(
    "--detach", is_flag=True, help="With --broker: print the run id and go on in the background; see `status`."
)
@click.option("--resume", metavar="RUN", help="With --broker: go on with a run whose dispatcher stopped.")
@json_option
def ingest_command(
    folder: Path | None,
    bundle_path: Path,
    location: str,
    collection: str,
    device: str,
    precision: Precision | None,
    source_name: str | None,
    moved: bool,
    list_file: Path | None,
    null_separated: bool,
    all_files: bool,
    columns_file: Path | None,
    indexes: dict[str, str],
    checksum: bool,
    decode: str,
    bulk: bool,
    prune: bool,
    yes: bool,
    failures_file: Path,
    batch_size: int | None,
    decode_threads: int | None,
    max_pixels: int,
    max_bytes: int,
    broker: str | None,
    chunk_size: int,
    look_ahead: int,
    detach: bool,
    resume: str | None,
    as_json: bool,
) -> int:
    """Bring a collection up to date with a folder of images.

    Unchanged images are skipped, changed ones replaced, so an interrupted run is continued by running it again. One bad file
    never stops the run: it is listed in --failures, and exit code 3 says that there were some.

    With --broker the work is done by `mcip-qdrant worker` processes, and this one only lists, dispatches and shows progress.

    \b
    Examples:
      mcip-qdrant ingest photos --bundle bundle
      mcip-qdrant ingest /mnt/archive --source archive --qdrant http://localhost:6333 --columns tags.csv --index year:integer
      mcip-qdrant ingest /mnt/archive --bundle bundle --qdrant http://qdrant:6333 --broker redis://redis:6379/0
      find photos -newer stamp -print0 | mcip-qdrant ingest --list - -0 --bundle bundle
    """
    if folder is None and list_file is None:
        raise click.UsageError("give a FOLDER, or paths with --list FILE")
    if prune and list_file is not None:
        raise click.UsageError("--prune needs a folder: a list does not say which images are gone")
    if null_separated and list_file is None:
        raise click.UsageError("-0 says how the paths of --list are separated; there is no --list")
    if broker is None and (detach or resume is not None):
        raise click.UsageError("--detach and --resume are for distributed runs: give --broker URL")
    if broker is not None:
        _refuse_with_broker(prune, detach, list_file, batch_size, decode_threads)
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.columns import Columns
    from mcip_qdrant.decode import DecodeLimits
    from mcip_qdrant.failures import FailureFile
    from mcip_qdrant.ingest import IngestOptions, ingest, open_encoder
    from mcip_qdrant.pipeline import Hooks
    from mcip_qdrant.session import Device, choose_provider, default_precision
    from mcip_qdrant.verify import check_preprocessing

    raise_pillow_limit(max_pixels)
    apart = own_files(location, failures_file)
    source = chosen_source(folder or Path(), source_name, list_file, null_separated, all_files, apart)
    columns = Columns.read(columns_file) if columns_file is not None else None
    bundle = Bundle.open(bundle_path)
    options = IngestOptions(
        collection=collection,
        decode=cast("Any", decode),
        checksum=checksum,
        prune=prune,
        confirmed=yes,
        source_moved=moved,
        bulk=bulk,
        indexes=indexes,
        limits=DecodeLimits(max_bytes=max_bytes, max_pixels=max_pixels),
        batch_size=batch_size,
        decode_threads=decode_threads,
        columns=columns,
    )
    if broker is not None:
        chosen = BrokerOptions(broker, chunk_size, look_ahead, detach, resume)
        return ingest_by_broker(source, bundle, location, options, chosen, failures_file, as_json=as_json)
    wanted = Device.parse(device)
    run_in = precision or default_precision(choose_provider(wanted))
    bundle.check_hashes(bundle.graph("visual", run_in))
    check_preprocessing(bundle)
    encoder = open_encoder(bundle, wanted, run_in)
    say_device(encoder.provider, device)
    store = connect(location, create=True)
    try:
        with FailureFile(failures_file) as failures, stop_on_interrupt() as stop, ProgressBar(source) as progress:
            hooks = Hooks(on_progress=progress, on_failure=failures.write, should_stop=stop.is_set)
            result = ingest(source, bundle, encoder, store, options, hooks)
    finally:
        store.close()
    print_result(result, failures_file, as_json)
    if columns is not None and columns.unmatched and not result.report.interrupted:
        click.echo(f"note: {columns.unmatched} row(s) of {columns_file} match no image that was listed", err=True)
    return _exit_code(result, embedded=store.embedded)


def _exit_code(result: IngestResult, *, embedded: bool) -> int:
    from mcip_qdrant.errors import SourceError
    from mcip_qdrant.store import EMBEDDED_COMFORT

    if embedded and result.points > EMBEDDED_COMFORT:
        click.echo(
            f"note: embedded mode searches {result.points} points by brute force. Beyond {EMBEDDED_COMFORT:,} a Qdrant server is "
            "much faster: --qdrant http://HOST:6333",
            err=True,
        )
    if result.report.interrupted:
        click.echo("interrupted; run the same command again to continue", err=True)
        return INTERRUPTED
    if result.prune_refused is not None:
        raise SourceError(result.prune_refused)
    return SOME_FAILED if result.report.failed or result.listing.errors else 0


def _refuse_with_broker(
    prune: bool, detach: bool, list_file: Path | None, batch_size: int | None, decode_threads: int | None
) -> None:
    if prune:
        raise click.UsageError("--prune cannot be combined with --broker yet; prune in a run without --broker")
    if batch_size is not None or decode_threads is not None:
        raise click.UsageError("with --broker, --batch-size and --decode-threads are options of `mcip-qdrant worker`")
    if detach and list_file is not None and str(list_file) == "-":
        raise click.UsageError("--detach cannot read the list from stdin; write it to a file")
