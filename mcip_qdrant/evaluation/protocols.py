"""The paper's protocols, each from images and a model to an `Evaluation`. Sources: facts of the paper and its released code.

The body of the paper was not available to us: what follows the released code (https://github.com/Visual-Computing/MCIP)
is marked [code], what was inferred from either is marked [inferred].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation import metrics
from mcip_qdrant.evaluation.datasets import NO_CLASS, LabelledImages
from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.evaluation import Evaluation, Figure
from mcip_qdrant.evaluation.examples import worst_queries
from mcip_qdrant.evaluation.labelled import (
    at_least_one_class,
    embed_labelled,
    labelled_evaluation,
    nothing_can_be_wrong,
    searching,
    worst_among_all,
)
from mcip_qdrant.evaluation.layouts import RevisitedImages
from mcip_qdrant.evaluation.preparation import describe
from mcip_qdrant.evaluation.prompts import class_vectors, repeated_names
from mcip_qdrant.evaluation.scores import Junk, PerQuery, Setting

SETTINGS: Final[tuple[Setting, ...]] = ("easy", "medium", "hard")


def full_ranking(
    embedder: Embedder,
    images: LabelledImages,
    *,
    query_in_ranking: bool,
    subsets: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Evaluation:
    """Mean average precision over full rankings; every image is query and database.

    GPR1200 (Schall et al., MMM 2022; https://github.com/Visual-Computing/GPR1200): the query stays in the ranking and counts
    as one of its ten positives; AP = 1/10 sum of (hits so far / rank); subsets are blocks of 200 classes, and "GPR1000" is
    the mean of the first five. INSTRE as the authors evaluate it: the same figure over all images, class = parent folder
    [code]; it differs from INSTRE's usual split of 1,250 queries.
    """
    data, found = embed_labelled(embedder, images, "images")
    at_least_one_class(data)
    score = metrics.full_ranking_map(
        found.vectors, data.labels, query_in_ranking=query_in_ranking, on_queries=searching(embedder, len(data))
    )
    figures = [Figure("mAP", score, data.labels, "class")]
    kept = {name: chosen[found.kept] for name, chosen in (subsets or {}).items()}
    if kept:
        first_five = np.any(list(kept.values())[:5], axis=0)
        parts = {"mAP GPR1000": first_five, **{f"mAP {name}": chosen for name, chosen in kept.items()}}
        figures += [
            Figure(name, PerQuery(np.where(chosen, score.values, np.nan)), data.labels, "class")
            for name, chosen in parts.items()
        ]
    inside = "the query stays in the ranking" if query_in_ranking else "the query is left out of the ranking"
    return labelled_evaluation(
        embedder,
        f"mean average precision over the full ranking; {inside}",
        data,
        found,
        figures,
        worst_among_all(score, data, found),
        notices=_trivial_ranking(data),
    )


def recall(embedder: Embedder, images: LabelledImages, ks: Sequence[int]) -> Evaluation:
    """Recall@k with the query left out: is an image of its class among the k nearest?

    CUB-200-2011 (classes 100 to 199 in ImageFolder's order), R@1/2/8/32; Stanford Online Products and Cars196 (test classes)
    likewise [code]: top k+1, the first dropped.
    """
    data, found = embed_labelled(embedder, images, "images")
    at_least_one_class(data)
    scores = metrics.recall_at_k(found.vectors, data.labels, ks, on_queries=searching(embedder, len(data)))
    figures = [Figure(f"R@{k}", score, data.labels, "class") for k, score in scores.items()]
    rule = "recall@k: an image of the same class among the k nearest; the query is left out"
    return labelled_evaluation(
        embedder,
        rule,
        data,
        found,
        figures,
        worst_among_all(scores[ks[0]], data, found),
        notices=_trivial_ranking(data),
    )


def revisited(embedder: Embedder, images: RevisitedImages) -> Evaluation:
    """Revisited Oxford and Paris (Radenović et al., CVPR 2018): mAP by trapezoids in three settings, junk taken out.

    Query pictures are used whole, without cropping to the box of the query; one scale, no whitening, no re-ranking [code].
    The released code gives Medium and Hard; which one the paper's table shows is not stated (Medium [inferred]).
    """
    database = embedder.images(images.database, "database")
    queries = embedder.images(images.queries, "queries")
    new_row = np.cumsum(database.kept) - 1
    answers = [
        Junk(*(new_row[rows[database.kept[rows]]] for rows in (answer.easy, answer.hard, answer.junk)))
        for answer, kept in zip(images.answers, queries.kept, strict=True)
        if kept
    ]
    scores = metrics.revisited_map(
        queries.vectors, database.vectors, answers, on_queries=searching(embedder, len(answers))
    )
    query_paths = [path for path, kept in zip(images.queries, queries.kept, strict=True) if kept]
    paths = [path for path, kept in zip(images.database, database.kept, strict=True) if kept]
    each = np.arange(len(answers), dtype=np.int64)
    figures = [Figure(f"mAP {name}", scores[name], each, "query") for name in ("medium", "hard", "easy")]
    right = [{*answer.easy.tolist(), *answer.hard.tolist()} for answer in answers]
    examples = worst_queries(
        scores["medium"],
        queries.vectors,
        database.vectors,
        show_query=lambda query: query_paths[query],
        show_item=lambda item: paths[item],
        wanted=lambda query: f"{len(right[query])} right images",
        is_right=lambda query, item: item in right[query],
    )
    return Evaluation(
        rule="revisited mAP, trapezoids, junk taken out; query pictures whole, one scale",
        model=embedder.model.label,
        space_id=embedder.model.space_id,
        variant=embedder.model.variant,
        preparation=describe(embedder.model.preprocess, embedder.preparation),
        sizes={"queries": len(query_paths), "database": len(paths)},
        figures=figures,
        failures=(*database.failures, *queries.failures),
        examples=examples,
        examples_of="mAP medium",
    )


def nearest_neighbours(
    embedder: Embedder, train: LabelledImages, test: LabelledImages, *, k: int = 21, temperature: float = 0.1
) -> Evaluation:
    """Weighted k-NN classification: k = 21, each neighbour votes exp(cosine / 0.1), the class with most votes wins [code].

    The paper's databases: ImageNet-1k train for ImageNet, -Sketch and -A; FGVC-Aircraft train for its test. `train` and
    `test` may number their classes differently: they are matched by name.
    """
    names = sorted({*train.names, *test.names})
    taught, teaching = embed_labelled(embedder, train, "training images")
    asked, found = embed_labelled(embedder, test, "test images")
    at_least_one_class(taught)
    at_least_one_class(asked)
    train_labels, test_labels = (_renumbered(data, names) for data in (taught, asked))
    score = metrics.weighted_knn(
        teaching.vectors,
        train_labels,
        found.vectors,
        test_labels,
        k=k,
        temperature=temperature,
        on_queries=searching(embedder, len(asked)),
    )
    unknown = sorted({*np.unique(test_labels[test_labels >= 0]).tolist()} - {*np.unique(train_labels).tolist()})
    notices = [f"class {names[label]} has test images and no training images: they count as wrong" for label in unknown]
    notices += nothing_can_be_wrong(len({*train_labels.tolist(), *test_labels.tolist()} - {NO_CLASS}))
    examples = worst_queries(
        score,
        found.vectors,
        teaching.vectors,
        show_query=lambda query: asked.paths[query],
        show_item=lambda item: taught.paths[item],
        wanted=lambda query: names[test_labels[query]],
        is_right=lambda query, item: bool(test_labels[query] == train_labels[item]),
    )
    rule = f"weighted k-NN accuracy, k={k}, votes exp(cosine/{temperature:g})"
    evaluation = labelled_evaluation(
        embedder, rule, asked, found, [Figure("accuracy", score, test_labels, "class")], examples, notices=notices
    )
    more = {"training images": len(taught)}
    return replace(evaluation, sizes={**evaluation.sizes, **more}, failures=(*teaching.failures, *found.failures))


def zero_shot(
    embedder: Embedder,
    images: LabelledImages,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    first_of_name_wins: bool = False,
) -> Evaluation:
    """Zero-shot classification: the nearest class vector wins (top-1); classes without images take part.

    The paper: open_clip's classifier with ImageNet's class names and OpenAI's 80 templates [code]. Subsets and prompts of
    ImageNet-A and ObjectNet are not known.

    Args:
        names: words for each class, in the order of `images.names`.
        first_of_name_wins: of classes with one name the first wins, as in open_clip's top-1, which published ImageNet figures
            are made by: two of its names stand twice. Otherwise they are tied, and all of them wrong.
    """
    vectors = class_vectors(embedder, names, templates)
    data, found = embed_labelled(embedder, images, "images")
    at_least_one_class(data)
    score = metrics.zero_shot(
        found.vectors,
        data.labels,
        vectors,
        repeated=repeated_names(names) if first_of_name_wins else (),
        on_queries=searching(embedder, len(data)),
    )
    examples = worst_queries(
        score,
        found.vectors,
        vectors,
        show_query=lambda query: data.paths[query],
        show_item=lambda item: names[item],
        wanted=lambda query: names[data.labels[query]],
        is_right=lambda query, item: bool(data.labels[query] == item),
    )
    rule = f"zero-shot accuracy (top-1), {len(templates)} prompt template{'s' if len(templates) > 1 else ''}"
    figures = [Figure("accuracy", score, data.labels, "class")]
    return labelled_evaluation(embedder, rule, data, found, figures, examples, notices=nothing_can_be_wrong(len(names)))


def captions(embedder: Embedder, images: LabelledImages, ks: Sequence[int] = (1, 5, 10)) -> Evaluation:
    """Recall@k from text to image and from image to text, each image with several captions.

    Flickr30k and MS-COCO: the paper's table gives text-to-image R@5; Karpathy's splits (1,000 and 5,000 images) and
    open_clip's transform are [inferred].
    """
    data, found = embed_labelled(embedder, images, "images")
    texts = [text for said in data.captions or [] for text in said]
    image_of = np.repeat(np.arange(len(data)), [len(said) for said in data.captions or [[]] * len(data)])
    if not texts:
        raise SourceError("no image has a caption")
    vectors = embedder.texts(texts, "captions")
    scores = metrics.caption_retrieval(
        found.vectors, vectors, image_of, ks, on_queries=searching(embedder, len(texts) + len(data))
    )
    each = np.arange(len(data), dtype=np.int64)
    figures = [Figure(f"text-to-image R@{k}", score, image_of, "image") for k, score in scores.text_to_image.items()]
    figures += [Figure(f"image-to-text R@{k}", score, each, "image") for k, score in scores.image_to_text.items()]
    examples = worst_queries(
        scores.text_to_image[ks[min(1, len(ks) - 1)]],
        vectors,
        found.vectors,
        show_query=lambda query: texts[query],
        show_item=lambda item: data.paths[item],
        wanted=lambda query: data.paths[image_of[query]],
        is_right=lambda query, item: bool(image_of[query] == item),
    )
    rule = "recall@k between captions and images"
    evaluation = labelled_evaluation(embedder, rule, data, found, figures, examples)
    sizes = {"images": len(data), "captions": len(texts)}
    return replace(evaluation, sizes=sizes, examples_of=figures[min(1, len(ks) - 1)].name)


def _trivial_ranking(data: LabelledImages) -> list[str]:
    return nothing_can_be_wrong(int((data.counts() > 0).sum()), distractors=bool((data.labels < 0).any()))


def _renumbered(images: LabelledImages, names: Sequence[str]) -> NDArray[np.int64]:
    number = {name: label for label, name in enumerate(names)}
    table = np.array([*(number[name] for name in images.names), -1], dtype=np.int64)
    return table[images.labels]
