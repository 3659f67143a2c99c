"""`mcip-qdrant eval collection NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mcip_qdrant.cli.eval_options import FiniteRange, ks_option
from mcip_qdrant.cli.eval_output import Bars, check_page, finish
from mcip_qdrant.cli.options import (
    ANY_PATH,
    DEFAULT_QDRANT,
    bundle_option,
    connect,
    device_option,
    json_option,
    precision_option,
)
from mcip_qdrant.manifest import Precision


@click.command("collection")
@click.argument("name", envvar="MCIP_QDRANT_COLLECTION")
@bundle_option
@click.option(
    "--qdrant",
    "location",
    envvar="MCIP_QDRANT_URL",
    show_envvar=True,
    default=DEFAULT_QDRANT,
    show_default=True,
    metavar="PATH|URL",
    help="Qdrant server, or a folder for embedded mode.",
)
@click.option("--class", "class_field", metavar="FIELD", help="Payload field with the class: adds R@k, mAP and k-NN.")
@click.option(
    "--captions", "caption_field", metavar="FIELD", help="Payload field with a caption or a list: text queries."
)
@click.option("--texts", type=ANY_PATH, help="A file of text queries, one per line.")
@click.option(
    "--queries", type=click.IntRange(min=1), default=1000, show_default=True, help="How many images to ask with."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws those images.")
@click.option(
    "--depth", type=click.IntRange(min=1), default=100, show_default=True, help="How long rankings are judged."
)
@ks_option("1,10,100")
@click.option("--hnsw-ef", type=click.IntRange(min=1), help="Search setting to measure: hnsw_ef.")
@click.option("--rescore/--no-rescore", default=None, help="Search setting to measure: rescoring of quantized results.")
@click.option("--oversampling", type=FiniteRange(min=1), help="Search setting to measure: oversampling.")
@click.option("--html", type=ANY_PATH, help="Write a page with the table and the worst queries as pictures.")
@json_option
@device_option
@precision_option
def collection_command(
    name: str,
    bundle_path: Path,
    location: str,
    class_field: str | None,
    caption_field: str | None,
    texts: Path | None,
    queries: int,
    seed: int,
    depth: int,
    ks: Sequence[int],
    hnsw_ef: int | None,
    rescore: bool | None,
    oversampling: float | None,
    html: Path | None,
    as_json: bool,
    device: str,
    precision: Precision | None,
) -> int:
    """What did my index settings cost? The same queries by exact search (A) and by the index of collection NAME (B).

    Image queries are stored vectors; text queries come from a payload field or a file, and are reported apart: an index is
    made from images' vectors, and texts lie elsewhere. Nothing is written to the collection. NAME may come from the
    environment instead, as MCIP_QDRANT_COLLECTION.

    \b
    Examples:
      mcip-qdrant eval collection images --bundle bundle --qdrant http://localhost:6333 --texts queries.txt
      mcip-qdrant eval collection images --bundle bundle --class species --captions caption --hnsw-ef 256
    """
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.collection import check_space
    from mcip_qdrant.encoder import EncoderSettings
    from mcip_qdrant.evaluation.embed import Embedder, Watch
    from mcip_qdrant.evaluation.index_cost import Questions, index_cost
    from mcip_qdrant.evaluation.model import BundleModel
    from mcip_qdrant.evaluation.prompts import read_lines
    from mcip_qdrant.evaluation.report import make_report
    from mcip_qdrant.evaluation.searches import Searches, SearchSettings
    from mcip_qdrant.session import Device

    check_page(html)
    questions = Questions(
        ks=ks,
        depth=depth,
        sample=queries,
        seed=seed,
        class_field=class_field,
        caption_field=caption_field,
        texts=read_lines(texts) if texts is not None else (),
    )
    bundle = Bundle.open(bundle_path)
    model = BundleModel(bundle, EncoderSettings(device=Device.parse(device), precision=precision))
    bars = Bars()
    store = connect(location)
    try:
        check_space(store, name, bundle.manifest)
        searches = Searches(store, name, SearchSettings(hnsw_ef, rescore, oversampling))
        embedder = Embedder(model, watch=Watch(bars.begin, bars.advance))
        evaluations = index_cost(searches, embedder, questions)
    finally:
        bars.close()
        store.close()
    return finish(make_report(f"collection {name}", evaluations), as_json=as_json, html=html)
