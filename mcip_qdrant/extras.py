"""Code whose optional dependency is missing says which extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcip_qdrant.errors import MissingExtraError


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failed import into an error that names the extra.

    Raises:
        MissingExtraError: something that the extra brings is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("mcip_qdrant"):
            raise
        raise MissingExtraError(
            f'{purpose} needs {exc.name}, which is not installed: pip install "mcip-qdrant[{extra}]"'
        ) from exc
