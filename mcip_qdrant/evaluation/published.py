"""The result table of the paper, to be shown beside a figure of the same protocol on the same data.

Transcribed from the table image in the authors' repository (https://github.com/Visual-Computing/MCIP, arXiv 2409.01936).
Percent. Columns GPR1200, INSTRE and ROxford are mAP, CUB R@1, k-NN and zero-shot accuracy, Flickr30k and COCO text-to-image R@5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mcip_qdrant.evaluation.evaluation import Evaluation

_COLUMNS: Final = (
    "GPR1200",
    "INSTRE",
    "CUB",
    "ROxford",
    "k-NN FGVC-Aircraft",
    "zero-shot ImageNet",
    "Flickr30k",
    "COCO",
)
_ROWS: Final[Mapping[str, tuple[float, ...]]] = {
    "OpenAI ViT-L@336": (76.0, 77.5, 77.0, 43.4, 51.3, 76.6, 89.0, 61.7),
    "OpenAI ViT-L@336, GPR-FT": (87.1, 85.0, 88.2, 67.3, 57.8, 74.5, 84.9, 57.2),
    "OpenAI ViT-L@336, 2SFT": (86.7, 84.4, 87.9, 66.4, 57.1, 77.2, 89.8, 64.6),
    "OpenAI ViT-L@336, MCIP": (87.0, 84.8, 88.0, 67.4, 57.7, 77.0, 90.1, 65.6),
    "OpenAI ViT-L@336, MCIP + Re-A": (87.0, 84.8, 88.0, 67.4, 57.7, 77.3, 90.2, 66.1),
    "LAION ViT-L": (77.2, 80.2, 82.2, 50.8, 59.3, 79.2, 91.6, 70.3),
    "LAION ViT-L, MCIP + Re-A": (87.5, 82.1, 90.2, 72.3, 63.1, 80.2, 91.7, 69.8),
    "SigLIP SO400M@384": (78.2, 84.1, 82.4, 51.3, 71.8, 83.1, 93.5, 76.7),
    "SigLIP SO400M@384, MCIP + Re-A": (89.0, 85.1, 91.2, 70.5, 72.3, 82.9, 95.0, 75.3),
}


@dataclass(frozen=True, slots=True)
class Published:
    """One column of the paper's table, and the figure of ours that it stands beside.

    `whole` holds the sizes that make the data the paper's; `caution` says what about the protocol is not certain.
    """

    column: str
    figure: str
    whole: Mapping[str, int]
    caution: str = ""

    def missing(self, evaluation: Evaluation) -> str | None:
        """What is missing for the column to stand beside an evaluation; None where nothing is: the whole benchmark, every image
        readable, and the figure of the column among those that were taken.
        """
        if evaluation.failures or any(evaluation.sizes.get(name) != size for name, size in self.whole.items()):
            wanted = ", ".join(f"{size} {name}" for name, size in self.whole.items())
            return f"not the whole benchmark ({wanted})"
        if all(figure.name != self.figure for figure in evaluation.figures):
            return f"{self.figure}, which the paper gives, is not among the figures"
        return None

    def rows(self) -> dict[str, float]:
        """Model and step -> percent."""
        place = _COLUMNS.index(self.column)
        return {name: values[place] for name, values in _ROWS.items()}


_AUTHORS: Final = "the authors prepare images with squash-1.125"
PUBLISHED: Final[Mapping[str, Published]] = {
    "gpr1200": Published("GPR1200", "mAP", {"images": 12_000, "classes": 1200}, _AUTHORS),
    "instre": Published("INSTRE", "mAP", {"images": 28_543}, _AUTHORS),
    "cub": Published("CUB", "R@1", {"images": 5924, "classes": 100}, _AUTHORS),
    "roxford": Published(
        "ROxford",
        "mAP medium",
        {"queries": 70, "database": 4993},
        f"that the table shows Medium is inferred; {_AUTHORS}",
    ),
    "aircraft": Published("k-NN FGVC-Aircraft", "accuracy", {"images": 3333, "training images": 3334}, _AUTHORS),
    "imagenet": Published(
        "zero-shot ImageNet",
        "accuracy",
        {"images": 50_000, "classes": 1000},
        "that the column is ImageNet-1k's validation set is inferred",
    ),
    "flickr30k": Published(
        "Flickr30k",
        "text-to-image R@5",
        {"images": 1000, "captions": 5000},
        "split and preparation of the images are inferred",
    ),
    "coco": Published(
        "COCO",
        "text-to-image R@5",
        {"images": 5000, "captions": 25_000},
        "split and preparation of the images are inferred",
    ),
}
