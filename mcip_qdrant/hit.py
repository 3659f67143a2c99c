"""One image that a search found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Hit:
    """One image found: point id, score, uri, and whole payload.

    `score` is the cosine to the query (-1..1), unless a recommendation strategy says otherwise. `vector` is float32 `[D]`, L2 norm 1,
    where the search asked `with_vectors`. `group` is the value that the search grouped by.
    """

    id: str
    score: float
    uri: str
    payload: dict[str, Any] = field(hash=False)
    vector: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    group: str | int | None = None

    @property
    def key(self) -> str:
        """`<source>/<relative path>`."""
        return str(self.payload.get("key") or self.id)
