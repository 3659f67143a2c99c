"""What the protocols share: labelled images are embedded, and figures on them become an `Evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.evaluation.embed import EmbeddedImages, Embedder
from mcip_qdrant.evaluation.evaluation import Evaluation, Example, Figure
from mcip_qdrant.evaluation.examples import worst_queries
from mcip_qdrant.evaluation.preparation import describe
from mcip_qdrant.evaluation.scores import PerQuery


def embed_labelled(embedder: Embedder, images: LabelledImages, what: str) -> tuple[LabelledImages, EmbeddedImages]:
    """Embed images; those that failed are gone from what is returned.

    Raises:
        SourceError: no image, or none that can be read.
    """
    if not len(images):
        raise SourceError("there is no image to evaluate")
    found = embedder.images(images.paths, what)
    return images.where(found.kept), found


def at_least_one_class(images: LabelledImages) -> None:
    """Refuse images of which none has a class.

    Raises:
        SourceError: none has.
    """
    if not (images.labels >= 0).any():
        raise SourceError(
            "no image has a class: this protocol needs a folder per class, or a table with a 'class' column"
        )


def nothing_can_be_wrong(classes: int, *, distractors: bool = False) -> list[str]:
    """A notice, where there is but one class to answer with, and no distractor."""
    if classes > 1 or distractors:
        return []
    return ["all images are of one class, so no answer can be wrong, and the figures say nothing of the model"]


def searching(embedder: Embedder, queries: int) -> Callable[[int], object]:
    """Announce the search of so many queries; what to call with each number that is done."""
    embedder.watch.begin("search", queries)
    return embedder.watch.advance


def worst_among_all(score: PerQuery, data: LabelledImages, found: EmbeddedImages) -> list[Example]:
    """The worst queries where every image is query and database, and right is what is of the query's class."""
    counts = data.counts()
    return worst_queries(
        score,
        found.vectors,
        found.vectors,
        show_query=lambda query: data.paths[query],
        show_item=lambda item: data.paths[item],
        wanted=lambda query: f"{data.names[data.labels[query]]} ({counts[data.labels[query]] - 1} others)",
        is_right=lambda query, item: bool(data.labels[query] == data.labels[item]),
        leave_out_self=True,
    )


def labelled_evaluation(
    embedder: Embedder,
    rule: str,
    data: LabelledImages,
    found: EmbeddedImages,
    figures: Sequence[Figure],
    examples: Sequence[Example],
    *,
    notices: Sequence[str] = (),
) -> Evaluation:
    """Figures on labelled images as an evaluation. `data` are those that were embedded, as `found` tells."""
    counts = data.counts()
    sizes = {"images": len(data), "classes": int((counts > 0).sum())}
    if empty := int((counts == 0).sum()):
        sizes["empty classes"] = empty
    if distractors := int((data.labels < 0).sum()):
        sizes["distractors"] = distractors
    return Evaluation(
        rule=rule,
        model=embedder.model.label,
        space_id=embedder.model.space_id,
        variant=embedder.model.variant,
        preparation=describe(embedder.model.preprocess, embedder.preparation),
        sizes=sizes,
        figures=figures,
        notices=(*data.notices, *notices),
        failures=found.failures,
        examples=examples,
        examples_of=figures[0].name,
    )
