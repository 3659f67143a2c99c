"""How `search` takes mixes, examples and filters from a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qdrant_client import models

_WHOLE = re.compile(r"-?(0|[1-9]\d*)")


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

    A value that reads as a whole number, true or false also matches the field as such: payload columns from a CSV file are texts,
    those of other software need not be.

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
        except (json.JSONDecodeError, ValidationError) as exc:
            raise click.UsageError(f"--filter {text}: not a Qdrant filter in JSON: {exc}") from exc
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise click.UsageError(f"--filter {text}: expected FIELD=VALUE, or a Qdrant filter in JSON")
    values: list[Any] = [value]
    if _WHOLE.fullmatch(value):
        values.append(int(value))
    elif value in {"true", "false"}:
        values.append(value == "true")
    return models.Filter(
        should=[models.FieldCondition(key=field, match=models.MatchValue(value=one)) for one in values]
    )
