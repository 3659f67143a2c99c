"""`mcip-qdrant eval captions`, `flickr30k` and `coco`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mcip_qdrant.cli.eval_options import EvalOptions, eval_options, ks_option
from mcip_qdrant.cli.eval_output import evaluate
from mcip_qdrant.cli.options import ANY_PATH


@click.command("captions")
@click.argument("data", type=ANY_PATH)
@ks_option("1,5,10")
@eval_options
def captions_command(options: EvalOptions, data: Path, ks: Sequence[int]) -> int:
    """Text-to-image and image-to-text recall@k of your own images: DATA is a CSV or JSONL table (image, captions)."""
    from mcip_qdrant.evaluation.datasets import read_table
    from mcip_qdrant.evaluation.protocols import captions

    images = read_table(data)
    return evaluate(options, f"captions of {data}", lambda embedder: captions(embedder, images, ks))


def _karpathy(options: EvalOptions, title: str, data: Path, images: Path | None, split: str, per_image: int) -> int:
    from mcip_qdrant.evaluation.layouts import read_karpathy
    from mcip_qdrant.evaluation.protocols import captions
    from mcip_qdrant.evaluation.published import PUBLISHED

    found = read_karpathy(data, images, split=split, captions=per_image)
    published = PUBLISHED[title] if split == "test" else None
    return evaluate(options, title, lambda embedder: captions(embedder, found), published)


_IMAGES = click.option("--images", type=ANY_PATH, help="Folder of the pictures. Default: that of the JSON file.")
_SPLIT = click.option("--split", default="test", show_default=True, help="Which of Karpathy's splits.")
_PER_IMAGE = click.option(
    "--captions-per-image",
    "per_image",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="At most this many of each image; 0 takes all.",
)


@click.command("flickr30k")
@click.argument("data", type=ANY_PATH)
@_IMAGES
@_SPLIT
@_PER_IMAGE
@eval_options
def flickr30k_command(options: EvalOptions, data: Path, images: Path | None, split: str, per_image: int) -> int:
    """Flickr30k: recall@k between captions and images. DATA is Karpathy's dataset_flickr30k.json."""
    return _karpathy(options, "flickr30k", data, images, split, per_image)


@click.command("coco")
@click.argument("data", type=ANY_PATH)
@_IMAGES
@_SPLIT
@_PER_IMAGE
@eval_options
def coco_command(options: EvalOptions, data: Path, images: Path | None, split: str, per_image: int) -> int:
    """MS-COCO: recall@k between captions and images. DATA is Karpathy's dataset_coco.json, --images holds val2014/."""
    return _karpathy(options, "coco", data, images, split, per_image)
