"""`mcip-qdrant search`."""

from __future__ import annotations

import warnings
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
    source_root_option,
    store_options,
)
from mcip_qdrant.cli.query_options import mix_parts, qdrant_filter
from mcip_qdrant.cli.streams import echo_json
from mcip_qdrant.manifest import Precision


@click.command("search")
@bundle_option
@store_options
@click.option("--text", metavar="STR", help="Words that describe the picture.")
@click.option("--image", type=ANY_PATH, help="A picture to find similar ones to.")
@click.option(
    "--mix",
    nargs=2,
    type=(str, float),
    multiple=True,
    metavar="WHAT WEIGHT",
    help="Words, or @FILE for a picture, and its weight; negative leads away from it. Repeated: the weighted sum of all.",
)
@click.option(
    "--like",
    multiple=True,
    metavar="KEY_OR_ID",
    help="An image of the collection, by key or point id; itself is left out. May be repeated.",
)
@click.option(
    "--unlike", multiple=True, metavar="KEY_OR_ID", help="With --like: an image to be far from. May be repeated."
)
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many hits.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Leave out this many of the best.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only images with this payload value; or a Qdrant filter in JSON. Repeated: all must hold.",
)
@click.option(
    "--diverse", is_flag=True, help="Spread the hits out: each as near to the query and as unlike the others as can be."
)
@click.option("--copies", is_flag=True, help="Show files with equal content each by itself, instead of one for all.")
@click.option("--sheet", type=ANY_PATH, help="Write a labelled contact sheet of the hits (PNG), of 200 at most.")
@source_root_option("For --sheet: where an archive lies on this machine, if not where it was ingested from")
@json_option
@device_option
@precision_option
def search_command(
    bundle_path: Path,
    location: str,
    collection: str,
    text: str | None,
    image: Path | None,
    mix: tuple[tuple[str, float], ...],
    like: tuple[str, ...],
    unlike: tuple[str, ...],
    limit: int,
    offset: int,
    filters: tuple[str, ...],
    diverse: bool,
    copies: bool,
    sheet: Path | None,
    source_roots: tuple[str, ...],
    as_json: bool,
    device: str,
    precision: Precision | None,
) -> None:
    """Find images by words, by a picture, by a mix of both, or by other images of the collection.

    Prints score, id and uri of each hit, best first; --json prints a list of objects with id, score, uri and payload.

    \b
    Examples:
      mcip-qdrant search --bundle bundle --text "two dogs on a beach" --filter year=2019
      mcip-qdrant search --bundle bundle --image car.jpg --limit 20 --sheet hits.png
      mcip-qdrant search --bundle bundle --mix "a beach at night" 1 --mix @car.jpg 0.7 --mix people -0.4
      mcip-qdrant search --bundle bundle --like photos/2019/IMG_0001.jpg --unlike photos/IMG_7.jpg --json
    """
    if (text is not None) + (image is not None) + bool(mix) + bool(like or unlike) != 1:
        raise click.UsageError("give exactly one of --text, --image, --mix and --like")
    if unlike and not like:
        raise click.UsageError("--unlike goes with --like: say which images the hits should be near to")
    from mcip_qdrant.source import parse_roots

    roots = parse_roots(source_roots) if source_roots else None
    conditions = qdrant_filter(filters)
    from mcip_qdrant.errors import TextCutWarning
    from mcip_qdrant.picture import rgb_image
    from mcip_qdrant.query import QueryEncoder
    from mcip_qdrant.request import Like
    from mcip_qdrant.search import ImageCollection
    from mcip_qdrant.session import Device, choose_provider

    encoder = QueryEncoder.open(bundle_path, device=device, precision=precision)
    if not like:
        say_device(choose_provider(Device.parse(device)), device)
    store = connect(location)
    try:
        searching = ImageCollection(store.client, collection, encoder)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", TextCutWarning)
            hits = searching.search(
                text=text,
                image=image,
                mix=mix_parts(mix),
                like=Like(positive=like, negative=unlike) if like else None,
                limit=limit,
                offset=offset,
                filter=conditions,
                diverse=diverse,
                collapse_duplicates=not copies,
            )
    finally:
        store.close()
    for warning in told:
        click.echo(f"mcip-qdrant: {warning.message}", err=True)
    if as_json:
        rows = [{"id": hit.id, "score": hit.score, "uri": hit.uri, "payload": hit.payload} for hit in hits]
        echo_json(rows)
    else:
        for hit in hits:
            click.echo(f"{hit.score:.4f}  {hit.id}  {on_one_line(hit.uri)}")
        if not hits:
            left = "no image passes the filter" if filters else "nothing is left at this offset" if offset else None
            click.echo(f"no hits: {left or f'collection {collection!r} is empty'}", err=True)
    if sheet is not None:
        from mcip_qdrant.sheet import contact_sheet, save_sheet

        title = _title(text, image, mix, like)
        save_sheet(contact_sheet(title, hits, rgb_image(image) if image is not None else None, roots), sheet)
        click.echo(f"contact sheet: {sheet}", err=True)


def _title(text: str | None, image: Path | None, mix: tuple[tuple[str, float], ...], like: tuple[str, ...]) -> str:
    if text is not None:
        return f"text: {text}"
    if image is not None:
        return f"image: {image}"
    if mix:
        return "mix: " + " ".join(f"{weight:+g} {what}" for what, weight in mix)
    return f"like: {', '.join(like)}"
