"""What one evaluation found: figures with a value for every query, what they were taken on, and the worst queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.embed import Failure
from mcip_qdrant.evaluation.scores import PerQuery

Shown: TypeAlias = Path | str
"""What a page can show: a picture by its path, or a text."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One named figure. `groups` (int64 `[Q]`) says which queries the bootstrap draws together, `grouped_by` in a word."""

    name: str
    score: PerQuery
    groups: NDArray[np.int64]
    grouped_by: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One answer to a query: what it is, its cosine, and whether it is right."""

    shown: Shown
    similarity: float
    right: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One query with its value of a figure, what would have been right (a picture, or words), and the nearest answers."""

    query: Shown
    value: float
    wanted: Shown
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One protocol on one model.

    `sizes` tells what was measured on (images, classes, queries …); `examples` are the worst queries of the figure `examples_of`;
    `facts` is what else is worth knowing, by name.
    """

    rule: str
    model: str
    space_id: str
    variant: str
    preparation: str
    sizes: Mapping[str, int]
    figures: Sequence[Figure]
    notices: Sequence[str] = ()
    failures: Sequence[Failure] = ()
    examples: Sequence[Example] = ()
    examples_of: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def figure(self, name: str) -> Figure:
        """The figure of this name."""
        return next(figure for figure in self.figures if figure.name == name)
