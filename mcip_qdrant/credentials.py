"""Secrets: from the environment or from files that it names, never from the command line."""

from __future__ import annotations

import os
from pathlib import Path

from mcip_qdrant.errors import ConfigurationError


def secret(name: str) -> str | None:
    """A secret from the variable `name`, or from the file that `<name>_FILE` names.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if given := os.environ.get(name):
        return given
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{name}_FILE={path} cannot be read: {exc}") from exc


def api_key() -> str | None:
    """The Qdrant API key.

    Raises:
        ConfigurationError: the file that holds it cannot be read.
    """
    return secret("MCIP_QDRANT_API_KEY")
