"""The worst queries of a figure, with what the model answered: what a person looks at to see what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.evaluation import Example, Neighbour, Shown
from mcip_qdrant.evaluation.scores import PerQuery
from mcip_qdrant.evaluation.similarity import Rows, similarity_blocks

WORST: Final = 12
SHOWN: Final = 5


def worst_queries(
    score: PerQuery,
    queries: Rows,
    database: Rows,
    *,
    show_query: Callable[[int], Shown],
    show_item: Callable[[int], Shown],
    wanted: Callable[[int], Shown],
    is_right: Callable[[int, int], bool],
    leave_out_self: bool = False,
) -> list[Example]:
    """The dozen queries with the lowest values, the lowest first, each with its five nearest items.

    Args:
        show_query, show_item: what to show for a row of `queries` and of `database`.
        wanted: what would have been right, as a picture or in words.
        is_right: whether (query row, database row) is a right answer.
        leave_out_self: the query is a row of the database and is not an answer to itself.
    """
    # Many queries share the value 0: a seeded draw among them, or all would come from the first class.
    drawn = np.random.default_rng(0).random(len(score.values))
    order = np.lexsort((drawn, np.where(score.defined, score.values, np.inf)))
    chosen = [int(query) for query in order[:WORST] if score.defined[query]]
    if not chosen:
        return []
    asked = np.concatenate([queries[query : query + 1] for query in chosen])
    examples = []
    for block in similarity_blocks(asked, database):
        for query, row in zip(chosen[block.start :], block.values, strict=False):
            if leave_out_self:
                row[query] = -np.inf
            nearest = _nearest(row, SHOWN)
            found = [Neighbour(show_item(item), float(row[item]), is_right(query, item)) for item in nearest]
            examples.append(Example(show_query(query), float(score.values[query]), wanted(query), found))
    return examples


def _nearest(row: NDArray[np.float32], count: int) -> Sequence[int]:
    finite = int(np.isfinite(row).sum())
    return [int(item) for item in np.argsort(-row, kind="stable")[: min(count, finite)]]
