"""`mcip-qdrant eval PROTOCOL …`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcip_qdrant.cli.eval_captions import captions_command, coco_command, flickr30k_command
from mcip_qdrant.cli.eval_collection import collection_command
from mcip_qdrant.cli.eval_options import EvalOptions, FiniteRange, eval_options, ks_option
from mcip_qdrant.cli.eval_output import evaluate
from mcip_qdrant.cli.options import ANY_PATH
from mcip_qdrant.extras import needs_extra

if TYPE_CHECKING:
    from mcip_qdrant.evaluation.datasets import LabelledImages

_EPILOG = """\b
Examples:
  mcip-qdrant eval classes photos --bundle bundle
  mcip-qdrant eval gpr1200 GPR1200 --compare base.bundle mcip.bundle --preparation squash-1.125 --html page.html
  mcip-qdrant eval captions captions.csv --model ViT-B-32 --checkpoint mine.pth --no-quick-gelu --json
  mcip-qdrant eval collection images --bundle bundle --qdrant http://localhost:6333
"""


@click.group("eval", epilog=_EPILOG)
def eval_group() -> None:
    """Measure a model by the paper's protocols, or what a collection's index costs.

    Each protocol takes the folder of a benchmark as its authors publish it; nothing is downloaded. Figures are printed in
    percent with 95 % bootstrap intervals; --json gives fractions. docs/evaluation.md defines every figure.
    """


@eval_group.command("gpr1200")
@click.argument("data", type=ANY_PATH)
@eval_options
def gpr1200_command(options: EvalOptions, data: Path) -> int:
    """GPR1200: mAP over the full ranking, the query stays in the ranking. DATA holds images/CATEGORY_name.jpg."""
    from mcip_qdrant.evaluation.layouts import gpr1200_subsets, read_gpr1200
    from mcip_qdrant.evaluation.protocols import full_ranking
    from mcip_qdrant.evaluation.published import PUBLISHED

    images = read_gpr1200(data)
    subsets = gpr1200_subsets(images)
    return evaluate(
        options,
        "GPR1200",
        lambda embedder: full_ranking(embedder, images, query_in_ranking=True, subsets=subsets),
        PUBLISHED["gpr1200"],
    )


@eval_group.command("instre")
@click.argument("data", type=ANY_PATH)
@eval_options
def instre_command(options: EvalOptions, data: Path) -> int:
    """INSTRE as the authors evaluate it: every image is query and database, the class is the parent folder's name."""
    from mcip_qdrant.evaluation.layouts import read_instre
    from mcip_qdrant.evaluation.protocols import full_ranking
    from mcip_qdrant.evaluation.published import PUBLISHED

    images = read_instre(data)
    return evaluate(
        options,
        "INSTRE",
        lambda embedder: full_ranking(embedder, images, query_in_ranking=True),
        PUBLISHED["instre"],
    )


@eval_group.command("classes")
@click.argument("data", type=ANY_PATH)
@click.option(
    "--query-in/--query-out",
    default=False,
    show_default=True,
    help="Keep the query in its own ranking (GPR1200's rule, higher figures), or leave it out.",
)
@eval_options
def classes_command(options: EvalOptions, data: Path, query_in: bool) -> int:
    """mAP over the full ranking of your own images: DATA holds CLASS/image.jpg, or is a CSV or JSONL table (image, class)."""
    from mcip_qdrant.evaluation.datasets import read_images
    from mcip_qdrant.evaluation.protocols import full_ranking

    images = read_images(data)
    return evaluate(
        options, f"classes of {data}", lambda embedder: full_ranking(embedder, images, query_in_ranking=query_in)
    )


@eval_group.command("recall")
@click.argument("data", type=ANY_PATH)
@ks_option("1,2,4,8")
@eval_options
def recall_command(options: EvalOptions, data: Path, ks: Sequence[int]) -> int:
    """Recall@k of your own images, the query left out: DATA as for `eval classes`."""
    from mcip_qdrant.evaluation.datasets import read_images

    return _recall(options, f"recall of {data}", read_images(data), ks, None)


@eval_group.command("cub")
@click.argument("data", type=ANY_PATH)
@ks_option("1,2,8,32")
@eval_options
def cub_command(options: EvalOptions, data: Path, ks: Sequence[int]) -> int:
    """CUB-200-2011: recall@k on its last 100 classes. DATA holds images/001.Black_footed_Albatross/…"""
    from mcip_qdrant.evaluation.layouts import read_cub

    return _recall(options, "CUB-200-2011", read_cub(data), ks, "cub")


@eval_group.command("sop")
@click.argument("data", type=ANY_PATH)
@ks_option("1,10,100,1000")
@eval_options
def sop_command(options: EvalOptions, data: Path, ks: Sequence[int]) -> int:
    """Stanford Online Products: recall@k on the images of DATA/Ebay_test.txt."""
    from mcip_qdrant.evaluation.layouts import read_sop

    return _recall(options, "Stanford Online Products", read_sop(data), ks, None)


@eval_group.command("cars")
@click.argument("data", type=ANY_PATH)
@ks_option("1,2,4,8")
@eval_options
def cars_command(options: EvalOptions, data: Path, ks: Sequence[int]) -> int:
    """Cars196: recall@k on its last 98 classes. DATA holds car_ims/ and cars_annos.mat, or 196 class folders."""
    from mcip_qdrant.evaluation.layouts import read_cars

    return _recall(options, "Cars196", read_cars(data), ks, None)


def _recall(options: EvalOptions, title: str, images: LabelledImages, ks: Sequence[int], published: str | None) -> int:
    from mcip_qdrant.evaluation.protocols import recall
    from mcip_qdrant.evaluation.published import PUBLISHED

    return evaluate(
        options, title, lambda embedder: recall(embedder, images, ks), PUBLISHED[published] if published else None
    )


@eval_group.command("roxford")
@click.argument("data", type=ANY_PATH)
@eval_options
def roxford_command(options: EvalOptions, data: Path) -> int:
    """Revisited Oxford: mAP in three settings. DATA holds gnd_roxford5k.pkl (read as data, never run) or .json, and jpg/."""
    return _revisited(options, "revisited Oxford", data, "roxford")


@eval_group.command("rparis")
@click.argument("data", type=ANY_PATH)
@eval_options
def rparis_command(options: EvalOptions, data: Path) -> int:
    """Revisited Paris: mAP in three settings. DATA holds gnd_rparis6k.pkl (read as data, never run) or .json, and jpg/."""
    return _revisited(options, "revisited Paris", data, None)


def _revisited(options: EvalOptions, title: str, data: Path, published: str | None) -> int:
    from mcip_qdrant.evaluation.layouts import read_revisited
    from mcip_qdrant.evaluation.protocols import revisited
    from mcip_qdrant.evaluation.published import PUBLISHED

    images = read_revisited(data)
    return evaluate(
        options, title, lambda embedder: revisited(embedder, images), PUBLISHED[published] if published else None
    )


@eval_group.command("knn")
@click.argument("train", type=ANY_PATH)
@click.argument("test", type=ANY_PATH)
@click.option("--neighbours", type=click.IntRange(min=1), default=21, show_default=True, help="How many vote.")
@click.option(
    "--temperature",
    type=FiniteRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    help="Each votes exp(cosine / temperature).",
)
@eval_options
def knn_command(options: EvalOptions, train: Path, test: Path, neighbours: int, temperature: float) -> int:
    """Weighted k-NN classification: TRAIN and TEST as for `eval classes`; classes are matched by name."""
    from mcip_qdrant.evaluation.datasets import read_images
    from mcip_qdrant.evaluation.protocols import nearest_neighbours

    database, queries = read_images(train), read_images(test)
    return evaluate(
        options,
        f"k-NN of {test} by {train}",
        lambda embedder: nearest_neighbours(embedder, database, queries, k=neighbours, temperature=temperature),
    )


@eval_group.command("aircraft")
@click.argument("data", type=ANY_PATH)
@eval_options
def aircraft_command(options: EvalOptions, data: Path) -> int:
    """FGVC-Aircraft: weighted k-NN, train to test. DATA holds data/images_variant_train.txt and so on."""
    from mcip_qdrant.evaluation.layouts import read_aircraft
    from mcip_qdrant.evaluation.protocols import nearest_neighbours
    from mcip_qdrant.evaluation.published import PUBLISHED

    train, test = read_aircraft(data, "train"), read_aircraft(data, "test")
    return evaluate(
        options, "FGVC-Aircraft", lambda embedder: nearest_neighbours(embedder, train, test), PUBLISHED["aircraft"]
    )


@eval_group.command("zero-shot")
@click.argument("data", type=ANY_PATH)
@click.option(
    "--class-names",
    metavar="FILE|imagenet",
    help="Words for each class: JSON {folder: words}, or lines in the order of the sorted folders; `imagenet`: open_clip's "
    "names of its 1000 classes. Default: the folders' names.",
)
@click.option(
    "--templates",
    metavar="FILE|imagenet",
    help="Prompt templates, one per line, {} for the class; `imagenet`: OpenAI's 80. Default: a photo of a {}.",
)
@eval_options
def zero_shot_command(options: EvalOptions, data: Path, class_names: str | None, templates: str | None) -> int:
    """Zero-shot classification (top-1): DATA as for `eval classes`; each class is named by prompts."""
    from mcip_qdrant.evaluation.datasets import read_images
    from mcip_qdrant.evaluation.prompts import DEFAULT_TEMPLATES, read_class_names, read_templates
    from mcip_qdrant.evaluation.protocols import zero_shot
    from mcip_qdrant.evaluation.published import PUBLISHED

    images = read_images(data)
    names = images.names
    prompts: tuple[str, ...] = DEFAULT_TEMPLATES
    if "imagenet" in {class_names, templates}:
        with needs_extra("eval,export", "ImageNet's names and templates"):
            from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    if class_names == "imagenet":
        names = list(IMAGENET_CLASSNAMES)
        if len(names) != len(images.names):
            raise click.BadParameter(
                f"imagenet names 1000 classes, {data} has {len(images.names)}", param_hint="--class-names"
            )
    elif class_names is not None:
        names = read_class_names(Path(class_names), images.names)
    if templates == "imagenet":
        prompts = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    elif templates is not None:
        prompts = read_templates(Path(templates))
    named = class_names == "imagenet"
    return evaluate(
        options,
        f"zero-shot classes of {data}",
        lambda embedder: zero_shot(embedder, images, names, prompts, first_of_name_wins=named),
        PUBLISHED["imagenet"] if named and templates == "imagenet" else None,
    )


for _command in (captions_command, flickr30k_command, coco_command, collection_command):
    eval_group.add_command(_command)
