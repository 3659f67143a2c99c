"""The report as one self-contained HTML page: the table, and the worst queries as pictures. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.errors import ImageError, SourceError
from mcip_qdrant.evaluation.datasets import show
from mcip_qdrant.evaluation.evaluation import Evaluation, Shown
from mcip_qdrant.evaluation.report import Report, data, interval_note, percent
from mcip_qdrant.keys import ImageRef, encode_path
from mcip_qdrant.read import read_image
from mcip_qdrant.thumbnail import thumbnail

_THUMBNAIL: Final = 160
_TEMPLATE: Final = Path(__file__).with_name("page.html.j2")


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        SourceError: it cannot be written.
    """
    try:
        path.write_text(page(report), encoding="utf-8", errors="backslashreplace")
    except OSError as exc:
        raise SourceError(f"--html {path}: cannot be written: {exc.strerror}") from exc


def page(report: Report) -> str:
    """The page as text. Whatever names and captions hold is shown as text: Jinja2 escapes it, and no script may run."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    published = report.published
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=report.title,
        rule=report.first.rule,
        data=data(report.first),
        interval=interval_note(report),
        preparations=sorted({evaluation.preparation for evaluation in report.evaluations}),
        models=[
            {"label": label, "space_id": evaluation.space_id, "variant": evaluation.variant, "facts": evaluation.facts}
            for label, evaluation in zip(report.labels, report.evaluations, strict=True)
        ],
        rows=[
            {
                "name": row.name,
                "estimates": [percent(one) for one in row.estimates],
                "difference": percent(row.difference, signed=True) if row.difference is not None else None,
                "queries": row.queries,
                "undefined": row.undefined,
            }
            for row in report.rows
        ],
        published={
            "column": published.column,
            "figure": published.figure,
            "caution": published.caution,
            "rows": published.rows(),
        }
        if published is not None
        else None,
        notices=report.notices,
        failures=[{"reason": str(failure.reason), "message": failure.message} for failure in report.first.failures],
        galleries=_galleries(report),
    )


def _galleries(report: Report) -> Sequence[Mapping[str, Any]]:
    return [
        {"label": label, "figure": evaluation.examples_of, "examples": _examples(evaluation)}
        for label, evaluation in zip(report.labels, report.evaluations, strict=True)
        if evaluation.examples
    ]


def _examples(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    return [
        {
            "query": _shown(example.query),
            "value": "-" if math.isnan(example.value) else f"{100 * example.value:.1f}",
            "wanted": _shown(example.wanted),
            "neighbours": [
                {"shown": _shown(one.shown), "similarity": f"{one.similarity:.3f}", "right": one.right}
                for one in example.neighbours
            ],
        }
        for example in evaluation.examples
    ]


def _shown(what: Shown) -> Mapping[str, str | None]:
    """A picture as a data URI with its name, or a text."""
    if isinstance(what, str):
        return {"text": what, "picture": None, "name": None}
    return {"text": None, "picture": _thumbnail(what), "name": show(f"{what.parent.name}/{what.name}")}


def _thumbnail(path: Path) -> str | None:
    """A small copy without any metadata of the original, or None where there is no readable picture."""
    try:
        real = Path(os.path.realpath(path))
        data = read_image(real.parent, ImageRef("", encode_path(real.name)), max_bytes=DecodeLimits().max_bytes).data
        jpeg = thumbnail(data, side=_THUMBNAIL).jpeg
    except (ImageError, ValueError):  # a NUL in the name, which a collection may claim
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
