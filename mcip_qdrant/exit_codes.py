"""Exit codes beside 0, 1, click's 2 for usage, and those that errors carry (`mcip_qdrant.errors`)."""

from __future__ import annotations

SOME_FAILED = 3
"""Done, but some images failed."""

INTERRUPTED = 130
"""Ctrl-C or SIGTERM; the same command continues."""
