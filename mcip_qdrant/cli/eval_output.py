"""Running a protocol on the chosen models, with progress on stderr and the report on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mcip_qdrant.cli.eval_options import EvalOptions
from mcip_qdrant.cli.options import on_one_line
from mcip_qdrant.cli.streams import echo_json
from mcip_qdrant.errors import SourceError
from mcip_qdrant.exit_codes import SOME_FAILED
from mcip_qdrant.extras import needs_extra

if TYPE_CHECKING:
    from mcip_qdrant.evaluation.embed import Embedder
    from mcip_qdrant.evaluation.evaluation import Evaluation
    from mcip_qdrant.evaluation.published import Published
    from mcip_qdrant.evaluation.report import Report


class Bars:
    """One progress bar after the other, on stderr."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._bar: Any = None

    def begin(self, what: str, total: int) -> None:
        """Start the next bar."""
        self.close()
        self._bar = tqdm(total=total, desc=f"{self._prefix}{what}", unit="item", file=sys.stderr, dynamic_ncols=True)

    def advance(self, items: int) -> None:
        """Move it on."""
        if self._bar is not None:
            self._bar.update(items)

    def close(self) -> None:
        """End the last bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def check_page(html: Path | None) -> None:
    """Find out before an hour of work whether a page can be written.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        SourceError: there can be no such file.
    """
    if html is None:
        return
    with needs_extra("eval", "--html"):
        import jinja2  # noqa: F401 - only whether it is there
    if html.is_dir():
        raise SourceError(f"--html {html}: cannot be written: it is a folder")
    if not html.parent.is_dir():
        raise SourceError(f"--html {html}: cannot be written: there is no folder {html.parent}")
    if not os.access(html if html.exists() else html.parent, os.W_OK):
        raise SourceError(f"--html {html}: cannot be written: permission denied")


def evaluate(
    options: EvalOptions,
    title: str,
    protocol: Callable[[Embedder], Evaluation],
    published: Published | None = None,
) -> int:
    """Run a protocol on one model or two, and say what came out; the exit code."""
    from mcip_qdrant.evaluation.embed import Embedder, Watch
    from mcip_qdrant.evaluation.report import make_report

    check_page(options.html)
    models = options.models()
    evaluations = []
    for letter, model in zip("AB", models, strict=False):
        bars = Bars(f"{letter}: " if len(models) > 1 else "")
        embedder = Embedder(
            model,
            options.preparation,
            options.cache_folder,
            Watch(bars.begin, bars.advance),
        )
        try:
            evaluations.append(protocol(embedder))
        finally:
            bars.close()
    report = make_report(title, evaluations, published)
    return finish(report, as_json=options.as_json, html=options.html)


def finish(report: Report, *, as_json: bool, html: Path | None) -> int:
    """Say what came out, write the page if one is wanted; the exit code."""
    _say(report, as_json=as_json)
    if html is not None:
        from mcip_qdrant.evaluation.page import write_page

        write_page(report, html)
        click.echo(f"page: {html}", err=True)
    return SOME_FAILED if report.first.failures else 0


def _say(report: Report, *, as_json: bool) -> None:
    from mcip_qdrant.evaluation.report import as_json as to_json
    from mcip_qdrant.evaluation.report import as_text

    for notice in report.notices:
        click.echo(f"notice: {on_one_line(notice)}", err=True)
    for failure in report.first.failures:
        click.echo(f"left out: {failure.reason}: {on_one_line(failure.message)}", err=True)
    if as_json:
        echo_json(to_json(report))
    else:
        click.echo("\n".join(on_one_line(line) for line in as_text(report).split("\n")))
