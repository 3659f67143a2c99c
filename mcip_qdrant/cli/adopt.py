"""`mcip-qdrant adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from mcip_qdrant.cli.options import bundle_option, connect, store_options


@click.command("adopt")
@bundle_option
@store_options
def adopt_command(bundle_path: Path, location: str, collection: str) -> None:
    """Declare that a collection made by other software holds this bundle's vectors.

    Size, distance and name of its vectors are checked; that they really come from this model only you can know.
    """
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.collection import adopt

    bundle = Bundle.open(bundle_path)
    store = connect(location)
    try:
        adopt(store, collection, bundle.manifest)
    finally:
        store.close()
    click.echo(f"collection {collection!r} now belongs to {bundle.manifest.model} (space_id {bundle.space_id[:12]})")
