"""How `search` takes mixes, examples and filters from a command line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qdrant_client import models

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)


def mix_parts(given: Sequence[tuple[str, float]]) -> list[tuple[str | Path, float]] | None:
    """`--mix WHAT WEIGHT`: `@FILE` is a picture, anything else words; `@@` starts words with an `@`."""
    if not given:
        return None
    return [(_what(what), weight) for what, weight in given]


def _what(what: str) -> str | Path:
    if what.startswith("@@"):
        return what[1:]
    return Path(what[1:]) if what.startswith("@") else what


def qdrant_filter(given: Sequence[str]) -> models.Filter | None:
    """`--filter FIELD=VALUE`, or a whole Qdrant filter as JSON; all of them must hold.

    A value that reads as a number, true or false matches the field as such and as text: which of them a column became is seen in
    the payload only (`mcip_qdrant.columns`).

    Raises:
        UsageError: neither of the two.
    """
    if not given:
        return None
    from qdrant_client import models

    return models.Filter(must=[_condition(text) for text in given])


def _condition(text: str) -> models.Filter:
    from pydantic import ValidationError
    from qdrant_client import models

    if text.lstrip().startswith("{"):
        try:
            return models.Filter.model_validate(json.loads(text))
        except json.JSONDecodeError as exc:
            raise click.UsageError(f"--filter {text}: not JSON: {exc}") from exc
        except ValidationError as exc:
            raise click.UsageError(
                f"--filter {text}: not a Qdrant filter. One that is: "
                '{"must": [{"key": "width", "range": {"gte": 1000}}]}'
            ) from exc
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise click.UsageError(f"--filter {text}: expected FIELD=VALUE, or a Qdrant filter in JSON")
    either: list[Any] = [models.FieldCondition(key=field, match=models.MatchValue(value=value))]
    if _WHOLE.fullmatch(value):  # a long identifier is more exact than any float
        either.append(models.FieldCondition(key=field, match=models.MatchValue(value=int(value))))
    if _NUMBER.fullmatch(value) and math.isfinite(number := float(value)):
        either.append(models.FieldCondition(key=field, range=models.Range(gte=number, lte=number)))
    elif value.lower() in {"true", "false"}:
        either.append(models.FieldCondition(key=field, match=models.MatchValue(value=value.lower() == "true")))
    return models.Filter(should=either)
