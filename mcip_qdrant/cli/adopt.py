"""`mcip-qdrant adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from mcip_qdrant.cli.options import bundle_option, connect, device_option, on_one_line, precision_option, store_options
from mcip_qdrant.manifest import Precision


@click.command("adopt")
@bundle_option
@store_options
@click.option(
    "--source-root",
    "source_roots",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Folder in which the images lie on this machine, where their payload holds relative paths. May be repeated.",
)
@click.option(
    "--path-field", metavar="FIELD", help="Payload field that names each image's file. Default: uri, key, path, …"
)
@click.option(
    "--without-probe",
    is_flag=True,
    help="Check size and distance only; that the vectors are this model's is your word.",
)
@device_option
@precision_option
def adopt_command(
    bundle_path: Path,
    location: str,
    collection: str,
    source_roots: tuple[str, ...],
    path_field: str | None,
    without_probe: bool,
    device: str,
    precision: Precision | None,
) -> None:
    """Take over a collection made by other software, if it holds this bundle's vectors.

    Size, distance and name of its vectors are checked. Then up to 16 of its images are encoded anew, and at least 4 of 5 must give
    the vector that is stored. Nothing but the collection's metadata is written.

    \b
    Examples:
      mcip-qdrant adopt --bundle bundle --qdrant http://localhost:6333 --collection photos
      mcip-qdrant adopt --bundle bundle --source-root /mnt/photos --path-field filename
    """
    from mcip_qdrant.adoption import adopt
    from mcip_qdrant.query import QueryEncoder
    from mcip_qdrant.source import parse_roots

    roots = parse_roots(source_roots) if source_roots else {}
    encoder = QueryEncoder.open(bundle_path, device=device, precision=precision)
    if without_probe:
        click.echo(
            "WARNING: --without-probe: nothing shows that these vectors come from this model. If they do not, "
            "every search will answer with nonsense",
            err=True,
        )
    store = connect(location)
    try:
        found = adopt(
            store.client, collection, encoder, roots=roots, path_field=path_field, without_probe=without_probe
        )
    finally:
        store.close()
    if found is not None:
        click.echo(f"probe: {found}", err=True)
    click.echo(
        f"collection {on_one_line(repr(collection))} now belongs to {encoder.bundle.manifest.model} "
        f"(space_id {encoder.bundle.space_id[:12]})"
    )
