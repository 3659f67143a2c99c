"""`mcip-qdrant search`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mcip_qdrant.cli.options import (
    ANY_PATH,
    bundle_option,
    connect,
    device_option,
    json_option,
    on_one_line,
    precision_option,
    say_device,
    store_options,
)
from mcip_qdrant.manifest import Precision


@click.command("search")
@bundle_option
@store_options
@click.option("--text", metavar="STR", help="Words that describe the picture.")
@click.option("--image", type=ANY_PATH, help="A picture to find similar ones to.")
@click.option("--like", metavar="KEY_OR_ID", help="An image of the collection, by key or point id; itself is left out.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many hits.")
@click.option("--sheet", type=ANY_PATH, help="Write a labelled contact sheet of the hits (PNG).")
@json_option
@device_option
@precision_option
def search_command(
    bundle_path: Path,
    location: str,
    collection: str,
    text: str | None,
    image: Path | None,
    like: str | None,
    limit: int,
    sheet: Path | None,
    as_json: bool,
    device: str,
    precision: Precision | None,
) -> None:
    """Find images by words, by a picture, or by another image of the collection.

    Prints score, id and uri of each hit, best first; --json prints a list of objects with id, score, uri and payload.

    \b
    Examples:
      mcip-qdrant search --bundle bundle --text "two dogs on a beach"
      mcip-qdrant search --bundle bundle --image car.jpg --limit 20 --sheet hits.png
      mcip-qdrant search --bundle bundle --like photos/2019/IMG_0001.jpg --json
    """
    if sum(given is not None for given in (text, image, like)) != 1:
        raise click.UsageError("give exactly one of --text, --image and --like")
    from mcip_qdrant.picture import rgb_image
    from mcip_qdrant.query import QueryEncoder
    from mcip_qdrant.search import ImageCollection
    from mcip_qdrant.session import Device, choose_provider

    encoder = QueryEncoder.open(bundle_path, device=device, precision=precision)
    if like is None:
        say_device(choose_provider(Device.parse(device)), device)
    store = connect(location)
    try:
        searching = ImageCollection(store.client, collection, encoder)
        hits = searching.search(text=text, image=image, like=like, limit=limit)
    finally:
        store.close()
    if as_json:
        rows = [{"id": hit.id, "score": hit.score, "uri": hit.uri, "payload": hit.payload} for hit in hits]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        for hit in hits:
            click.echo(f"{hit.score:.4f}  {hit.id}  {on_one_line(hit.uri)}")
        if not hits:
            click.echo(f"no hits: collection {collection!r} is empty", err=True)
    if sheet is not None:
        from mcip_qdrant.sheet import contact_sheet, save_sheet

        title = f"text: {text}" if text is not None else f"image: {image}" if image is not None else f"like: {like}"
        save_sheet(contact_sheet(title, hits, rgb_image(image) if image is not None else None), sheet)
        click.echo(f"contact sheet: {sheet}", err=True)
