"""Evaluations of one or two models as rows: for the terminal, for programs (JSON), and for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, Estimate, difference, estimate
from mcip_qdrant.evaluation.evaluation import Evaluation
from mcip_qdrant.evaluation.published import Published


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: an estimate per model, the paired difference of two (second minus first), and how many queries count."""

    name: str
    estimates: tuple[Estimate, ...]
    difference: Estimate | None
    queries: int
    undefined: int
    grouped_by: str


@dataclass(frozen=True, slots=True)
class Report:
    """One protocol on one or two models, with the paper's column where data and protocol are the same."""

    title: str
    evaluations: tuple[Evaluation, ...]
    rows: tuple[Row, ...]
    published: Published | None
    notices: tuple[str, ...]

    @property
    def first(self) -> Evaluation:
        """The evaluation of the first model."""
        return self.evaluations[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each model; A and B in front where there are two."""
        names = [evaluation.model for evaluation in self.evaluations]
        return (
            (names[0],)
            if len(names) == 1
            else tuple(f"{letter}: {name}" for letter, name in zip("AB", names, strict=True))
        )


def make_report(title: str, evaluations: Sequence[Evaluation], published: Published | None = None) -> Report:
    """Put evaluations of the same protocol on the same data side by side.

    Args:
        published: the paper's column; it is left out, with a notice, where data or figures are not those of the paper.

    Raises:
        SourceError: the models did not see the same images.
    """
    failed = [{failure.path for failure in evaluation.failures} for evaluation in evaluations]
    if odd := next((path for paths in failed for path in paths ^ failed[0]), None):
        raise SourceError(f"{odd}: one of the models embeds it and the other does not, so they saw different data")
    notices = list(dict.fromkeys(notice for evaluation in evaluations for notice in evaluation.notices))
    if published is not None:
        missing = next((why for evaluation in evaluations if (why := published.missing(evaluation))), None)
        if missing is not None:
            notices.append(f"{missing}, so the paper's figures are not shown beside it")
            published = None
    return Report(title, tuple(evaluations), tuple(_rows(evaluations)), published, tuple(notices))


def _rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    rows = []
    for figure in evaluations[0].figures:
        figures = [evaluation.figure(figure.name) for evaluation in evaluations]
        paired = difference(figures[0].score, figures[1].score, figure.groups) if len(figures) == 2 else None
        rows.append(
            Row(
                name=figure.name,
                estimates=tuple(estimate(one.score, one.groups) for one in figures),
                difference=paired,
                queries=int(figure.score.defined.sum()),
                undefined=figure.score.undefined,
                grouped_by=figure.grouped_by,
            )
        )
    return rows


def as_json(report: Report) -> dict[str, Any]:
    """The report for programs. Figures are fractions 0..1; what is undefined is null."""
    return {
        "title": report.title,
        "protocol": report.first.rule,
        "preparations": [evaluation.preparation for evaluation in report.evaluations],
        "data": dict(report.first.sizes),
        "models": [
            {
                "label": evaluation.model,
                "space_id": evaluation.space_id,
                "variant": evaluation.variant,
                "facts": dict(evaluation.facts),
            }
            for evaluation in report.evaluations
        ],
        "figures": [
            {
                "name": row.name,
                "queries": row.queries,
                "undefined": row.undefined,
                "grouped_by": row.grouped_by,
                "estimates": [_numbers(one) for one in row.estimates],
                "difference": _numbers(row.difference) if row.difference is not None else None,
            }
            for row in report.rows
        ],
        "interval": {"level": LEVEL, "method": "cluster bootstrap, percentile", "resamples": RESAMPLES, "seed": SEED},
        "published": published_json(report.published),
        "notices": list(report.notices),
        "failures": [
            {"path": str(failure.path), "reason": str(failure.reason), "message": failure.message}
            for failure in report.first.failures
        ],
    }


def published_json(published: Published | None) -> dict[str, Any] | None:
    """The paper's column for programs, in percent as printed."""
    if published is None:
        return None
    return {
        "column": published.column,
        "figure": published.figure,
        "caution": published.caution,
        "percent": published.rows(),
    }


def as_text(report: Report) -> str:
    """The report as a table for the terminal. Figures are percentages."""
    header = ["figure", *report.labels]
    if len(report.evaluations) == 2:
        header.append("B - A")
    header.append("queries")
    lines = [header]
    for row in report.rows:
        cells = [row.name, *(percent(one) for one in row.estimates)]
        if row.difference is not None:
            cells.append(percent(row.difference, signed=True))
        cells.append(f"{row.queries}" + (f" (+{row.undefined} undefined)" if row.undefined else ""))
        lines.append(cells)
    parts = [report.title, f"  {report.first.rule}", f"  images: {report.first.preparation}"]
    parts += [f"  images of B: {report.evaluations[1].preparation}"] if _differ(report) else []
    parts += [
        f"  {label}: {evaluation.variant}, space_id {evaluation.space_id[:12]}"
        for label, evaluation in zip(report.labels, report.evaluations, strict=True)
    ]
    parts += [f"  data: {data(report.first)}", "", *table(lines), "", f"  {interval_note(report)}"]
    parts += [f"  {name}: {fact}" for evaluation in report.evaluations for name, fact in evaluation.facts.items()]
    if report.published is not None:
        width = max(map(len, report.published.rows()))
        parts += ["", f"  published, {report.published.column}, {report.published.figure}:"]
        parts += [f"    {name:{width}}  {value:5.1f}" for name, value in report.published.rows().items()]
        parts += [f"    mind: {report.published.caution}"] if report.published.caution else []
    return "\n".join(parts)


def interval_note(report: Report) -> str:
    """What the brackets mean."""
    grouped = " or ".join(dict.fromkeys(row.grouped_by for row in report.rows))
    return f"[95 % interval: bootstrap over whole groups of queries ({grouped}), {RESAMPLES} times, seed {SEED}]"


def data(evaluation: Evaluation) -> str:
    """What was measured on, in a line."""
    return ", ".join(f"{size} {name}" for name, size in evaluation.sizes.items())


def percent(one: Estimate, *, signed: bool = False) -> str:
    """`87.12 [86.90, 87.33]`, or a dash where nothing is defined."""
    sign = "+" if signed else ""
    if math.isnan(one.value):
        return "-"
    shown = f"{100 * one.value:{sign}.2f}"
    return shown if not one.low < one.high else f"{shown} [{100 * one.low:{sign}.2f}, {100 * one.high:{sign}.2f}]"


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def _differ(report: Report) -> bool:
    return len({evaluation.preparation for evaluation in report.evaluations}) > 1


def _numbers(one: Estimate) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value
        for name, value in (("value", one.value), ("low", one.low), ("high", one.high))
    }
