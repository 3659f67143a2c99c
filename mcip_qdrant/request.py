"""What a search asks: one query, checked, in the words that Qdrant understands."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.picture import ImageLike
from mcip_qdrant.query import MixPart
from mcip_qdrant.text import is_unicode

if TYPE_CHECKING:
    from qdrant_client import models

Strategy = Literal["average_vector", "best_score", "sum_scores"]
Examples: TypeAlias = "str | UUID | Iterable[str | UUID]"
_KINDS = ("text", "image", "like", "mix", "vector")
_DIVERSITY = 0.5
_LARGEST_CANDIDATES = 16_384  # what Qdrant allows
_CANDIDATES_PER_HIT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Like:
    """Images of the collection to be near to, and to be far from, each by key or point id.

    `strategy` is one of Qdrant's recommendation strategies. With `average_vector` the score is a cosine and at least one positive
    example is needed; `best_score` and `sum_scores` compare with each example by itself and also take negative examples alone.
    """

    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    strategy: Strategy = "average_vector"

    @classmethod
    def of(cls, given: Examples | Like) -> Like:
        """One key or id, a list of them, or all that `Like` can say.

        Raises:
            InvalidQueryError: no example, or something else than keys and ids.
        """
        if isinstance(given, Like):
            positive, negative = _examples("positive", given.positive), _examples("negative", given.negative)
            like = replace(given, positive=positive, negative=negative)
        else:
            like = cls(positive=_examples("positive", [given] if isinstance(given, (str, UUID)) else given))
        if like.strategy not in {"average_vector", "best_score", "sum_scores"}:
            raise InvalidQueryError(f"unknown strategy {like.strategy!r}: say average_vector, best_score or sum_scores")
        if not like.positive and (like.strategy == "average_vector" or not like.negative):
            raise InvalidQueryError(
                "like needs at least one positive example (negative ones alone need the strategy best_score or sum_scores)"
            )
        return like


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """One search, with the meaning of `ImageCollection.search`'s arguments. Exactly one of the first five is given.

    `limit` None takes the limit of the call.

    Raises:
        InvalidQueryError: not exactly one query, or a number that makes no sense.
    """

    text: str | None = None
    image: ImageLike | None = None
    like: Examples | Like | None = None
    mix: Sequence[MixPart] | None = None
    vector: NDArray[np.float32] | Sequence[float] | None = None
    limit: int | None = None
    offset: int = 0
    filter: models.Filter | None = None
    score_threshold: float | None = None
    search_params: models.SearchParams | None = None
    with_vectors: bool = False
    diverse: bool | float = False

    def __post_init__(self) -> None:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise InvalidQueryError(f"give exactly one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}")
        if self.limit is not None:
            whole_number("limit", self.limit, least=1)
        whole_number("offset", self.offset, least=0)
        if self.score_threshold is not None and not _finite(self.score_threshold):
            raise InvalidQueryError(f"score_threshold must be a finite number, not {self.score_threshold!r}")
        if not isinstance(self.diverse, bool) and not (_finite(self.diverse) and 0 <= self.diverse <= 1):
            raise InvalidQueryError(f"diverse must be True, False or a number from 0 to 1, not {self.diverse!r}")
        if self.like is not None:
            like = Like.of(self.like)
            object.__setattr__(self, "like", like)
            if self.is_diverse and (len(like.positive) != 1 or like.negative):
                raise InvalidQueryError("diverse takes one example only: like=KEY, without negative ones")
        if self.is_diverse and self.offset:
            raise InvalidQueryError(
                "diverse has no offset: which image comes next depends on all before it; ask for a larger limit"
            )

    @classmethod
    def of(cls, given: Query | Mapping[str, Any], *, limit: int) -> Self | Query:
        """A query, or a dict of its arguments, with its limit filled in.

        Raises:
            InvalidQueryError: an argument that does not exist, or that makes no sense.
        """
        if not isinstance(given, Query):
            try:
                given = cls(**given)
            except TypeError as exc:
                raise InvalidQueryError(f"a query must be a Query or a dict of its arguments: {exc}") from exc
        return given if given.limit is not None else replace(given, limit=limit)

    @property
    def is_diverse(self) -> bool:
        """Whether the answer is to be spread out; a diversity of 0 is an ordinary one."""
        return self.diverse is not False and self.diverse != 0

    def as_mix(self) -> Sequence[MixPart] | None:
        """What must be encoded, as a mix; None where the query has a vector or examples."""
        if self.text is not None:
            return [(self.text, 1.0)]
        if self.image is not None:
            # In a mix, a str would be words.
            return [(Path(self.image) if isinstance(self.image, str) else self.image, 1.0)]
        return self.mix

    def nearest(self, target: list[float] | str | int, *, fetch: int) -> models.NearestQuery:
        """Qdrant's query for a vector or a point id, with its re-ranking for diversity where asked.

        Args:
            fetch: how many points will be asked for.
        """
        from qdrant_client import models

        return models.NearestQuery(nearest=target, mmr=self.mmr(fetch=fetch))

    def mmr(self, *, fetch: int) -> models.Mmr | None:
        """Qdrant's re-ranking for diversity, where asked, when so many points will be asked for."""
        from qdrant_client import models

        if not self.is_diverse:
            return None
        # Without a limit of its own, Qdrant re-ranks only as many candidates as it returns, which changes nothing but their order.
        candidates = min(_CANDIDATES_PER_HIT * max(fetch, 10), _LARGEST_CANDIDATES)
        diversity = _DIVERSITY if self.diverse is True else float(self.diverse)
        return models.Mmr(diversity=diversity, candidates_limit=candidates)


def _examples(name: str, given: Examples) -> Sequence[str]:
    wrong = f"the {name} examples of like must be a list of keys or point ids (str or UUID), not"
    if isinstance(given, (str, UUID)) or not isinstance(given, Iterable):
        raise InvalidQueryError(f"{wrong} {type(given).__name__}")
    examples = []
    for one in given:
        if not isinstance(one, (str, UUID)):
            raise InvalidQueryError(f"{wrong} of {type(one).__name__}")
        if not is_unicode(str(one)):
            raise InvalidQueryError(
                f"{str(one)[:200]!r} is no key: it holds half a character; keys write such bytes as %XX (mcip_qdrant.keys.encode_path)"
            )
        examples.append(str(one))
    return examples or ()


def whole_number(name: str, value: object, *, least: int) -> int:
    """A count that a user gave.

    Raises:
        InvalidQueryError: not a whole number, or below `least`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as exc:
        raise InvalidQueryError(f"{name} must be a whole number, not {value!r}") from exc
    if number < least:
        raise InvalidQueryError(f"{name} must be at least {least}, not {number}")
    return number


def checked_filter(given: models.Filter | None) -> models.Filter | None:
    """A filter that a user gave.

    Raises:
        InvalidQueryError: something else.
    """
    from qdrant_client import models

    if given is not None and not isinstance(given, models.Filter):
        raise InvalidQueryError(f"filter must be a qdrant_client.models.Filter, not {type(given).__name__}")
    return given


def checked_vector(vector: object, dimension: int) -> NDArray[np.float32]:
    """A vector that a user gave, as float32 `[D]`, L2 norm 1.

    Raises:
        InvalidQueryError: another length, a number that float32 does not hold, or all zeros.
    """
    try:
        numbers = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidQueryError(f"vector must be {dimension} numbers") from exc
    if numbers.shape != (dimension,):
        raise InvalidQueryError(f"vector must be {dimension} numbers, not an array of shape {list(numbers.shape)}")
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise InvalidQueryError(
            "vector must be finite numbers of float32; it holds NaN, infinity, or a number beyond 3.4e38"
        )
    largest = np.abs(numbers).max()
    if largest == 0:
        raise InvalidQueryError("vector is all zeros, which points nowhere")
    # Only the direction counts, and the sum of the squares of very large or small numbers is infinite or zero.
    scaled = numbers / largest
    unit: NDArray[np.float32] = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return unit


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
