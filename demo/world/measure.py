"""The figures of a model on a split of the small world, from its vectors: the paper's groups of columns in small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.metrics import caption_retrieval, full_ranking_map, weighted_knn, zero_shot
from mcip_qdrant.world.archive import Picture
from mcip_qdrant.world.captions import Claim, Mention, class_name, class_names, holds, with_article
from mcip_qdrant.world.scenes import COLOURS, SHAPES

Vectors = NDArray[np.float32]
FIGURES: Final = (
    "image_map",
    "knn",
    "zero_shot",
    "text_recall_at_1",
    "text_recall_at_5",
    "short_text_precision_at_5",
)
_SHORT_HITS: Final = 5
_PROMPTS: Final = ("a large {}", "a big {}", "a picture of a large {}", "this is a big {}")


def measure(pictures: Sequence[Picture], images: Vectors, encode: Callable[[list[str]], Vectors]) -> dict[str, float]:
    """All figures, each 0..1 and higher is better.

    - `image_map`: full-ranking mAP between the views of an instance, the query left out (paper: GPR1200, INSTRE). The
      hardest wrong pictures are those of the other instances of its group.
    - `knn`: accuracy of the paper's weighted k-NN, k = 21. The class is the large thing's colour and shape; half of each
      group's instances are asked, the others are the database.
    - `zero_shot`: accuracy for the same classes, against the mean of four prompts.
    - `text_recall_at_1`, `_at_5`: for each picture its full caption, which is true of nothing else in a gallery that holds
      one picture of every group; mean over the galleries (first view of first instances, second view of first instances …).
    - `short_text_precision_at_5`: for "a red circle" and each other colour and shape, the share of the five nearest pictures of
      the whole split that show it; mean over texts.

    Args:
        pictures: a whole split, in the order of `world.archive.pictures`.
        images: float32 `[N, D]`, unit norm, one row per picture.
        encode: gives float32 `[M, D]`, unit norm, for M texts.
    """
    instances = np.array([picture.scene.number for picture in pictures], dtype=np.int64)
    names = class_names()
    labels = np.array([names.index(class_name(picture.scene.group.large)) for picture in pictures], dtype=np.int64)
    prompts = encode([prompt.format(name) for name in names for prompt in _PROMPTS])
    means = prompts.reshape(len(names), len(_PROMPTS), -1).mean(axis=1)
    classes = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    members = instances % 1000
    asked = members > members.max() // 2
    return {
        "image_map": full_ranking_map(images, instances, query_in_ranking=False).mean,
        "knn": weighted_knn(images[~asked], labels[~asked], images[asked], labels[asked]).mean,
        "zero_shot": zero_shot(images, labels, classes).mean,
        **_text_recall(pictures, images, encode([picture.captions[0].text for picture in pictures])),
        "short_text_precision_at_5": _short_precision(pictures, images, encode),
    }


def _short_precision(pictures: Sequence[Picture], images: Vectors, encode: Callable[[list[str]], Vectors]) -> float:
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    texts = encode([with_article(name) for name in class_names()])
    shares = []
    for (colour, shape), text in zip(things, texts, strict=True):
        claim = Claim(Mention(colour, shape))
        true = np.array([holds(claim, picture.scene.group) for picture in pictures])
        if true.sum() >= _SHORT_HITS:
            nearest = np.argsort(-(images @ text), kind="stable")[:_SHORT_HITS]
            shares.append(true[nearest].mean())
    return float(np.mean(shares))


def _text_recall(pictures: Sequence[Picture], images: Vectors, captions: Vectors) -> dict[str, float]:
    gallery_of = np.array([(picture.scene.number % 1000, picture.view) for picture in pictures])
    found = []
    for gallery in np.unique(gallery_of, axis=0):
        rows = np.flatnonzero((gallery_of == gallery).all(axis=1))
        scores = caption_retrieval(images[rows], captions[rows], np.arange(len(rows), dtype=np.int64), (1, 5))
        found.append([scores.text_to_image[k].mean for k in (1, 5)])
    at_1, at_5 = np.mean(found, axis=0)
    return {"text_recall_at_1": float(at_1), "text_recall_at_5": float(at_5)}
