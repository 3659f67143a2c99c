"""What a person sees of a training run: a bar with the newest figures, and notes above it. All on stderr."""

from __future__ import annotations

import sys
from typing import Any

import click
from tqdm import tqdm


class TuneBar:
    """A listener that draws one progress bar per stage."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown: dict[str, float] = {}

    def begin(self, what: str, total: int, done: int) -> None:
        """Close the last bar and open the next."""
        self.close()
        unit = "step" if what == "train" else "item"
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def advance(self, items: int) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update(items)

    def values(self, step: int, values: dict[str, float]) -> None:  # noqa: ARG002  part of the listener
        """Loss, learning rate and metric behind the bar."""
        self._shown.update({name: values[name] for name in ("loss", "lr", "metric") if name in values})
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in self._shown.items()}, refresh=False)

    def note(self, text: str) -> None:
        """One line above the bar."""
        if self._bar is None:
            click.echo(text, err=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> TuneBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
