"""`mcip-qdrant tune …`: the paper's two fine-tuning methods, the captions they need, and plain contrastive training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcip_qdrant.cli.options import ANY_PATH, device_option
from mcip_qdrant.cli.streams import echo_json
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.tuning.hyper import HyperParameters, Method, hyper_parameters, knobs_of

if TYPE_CHECKING:
    from mcip_qdrant.tuning.captions import CaptionReport
    from mcip_qdrant.tuning.state import TuneReport

_F = TypeVar("_F", bound=Callable[..., Any])

_PRECISIONS = click.Choice(["auto", "fp32", "bf16", "fp16"])
_METRICS = click.Choice(["image-map", "text-recall", "mean", "last"])
_SECOND_STAGE = "realign_"

_EPILOG = """\b
From a folder of classes to a new collection:
  mcip-qdrant tune captions --model NAME --checkpoint BASE.pth --data photos --caption-file captions.txt --output found
  mcip-qdrant tune mcip --model NAME --checkpoint BASE.pth --data found/captions.jsonl --output tuned
  mcip-qdrant export --model NAME --checkpoint tuned/model.pth --output bundle

\b
Several GPUs: torchrun --nproc-per-node 4 -m mcip_qdrant tune mcip …
Killed? The same command goes on from the last saved state. docs/tuning.md has the whole road and its costs.
"""


@click.group("tune", epilog=_EPILOG)
def tune_group() -> None:
    """Fine-tune a CLIP model so that one embedding serves image search and text search (extra: tune)."""


def _stacked(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_model_options = _stacked(
    click.option(
        "--model",
        required=True,
        metavar="NAME",
        help="Preset, open_clip architecture name or local-dir:DIR, as `export` takes it.",
    ),
    click.option(
        "--quick-gelu/--no-quick-gelu", default=None, help="Activation that the starting weights were trained with."
    ),
    click.option("--base", metavar="TAG", help="Registered tag whose activation and preprocessing apply."),
    click.option(
        "--tokenizer", type=ANY_PATH, help="Folder with the Hugging Face tokenizer's files, where one is needed."
    ),
    device_option,
    click.option(
        "--loaders",
        type=click.IntRange(min=0),
        help="Processes that decode images. [default: none on a CPU, up to 8 for a GPU]",
    ),
    click.option(
        "--max-unreadable",
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        help="Share of images that may turn out unreadable before the run stops; ten always may, or a tenth of a set below 100.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)

_run_options = _stacked(
    click.option("--output", required=True, type=ANY_PATH, help="Folder for model.pth, report.json, state and log."),
    click.option(
        "--validation", type=ANY_PATH, help="Images to choose the best weights by: a folder of classes or a table."
    ),
    click.option(
        "--hold-out",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.05,
        show_default=True,
        help="Without --validation: share kept from training; whole classes where the method learns classes.",
    ),
    click.option(
        "--metric",
        type=_METRICS,
        help="What the best weights are chosen by; last: the newest, unmeasured. "
        "[default: image-map for gpr, mcip and 2sft, else text-recall]",
    ),
    click.option(
        "--save-every",
        type=click.IntRange(min=0),
        default=500,
        show_default=True,
        help="Steps between saved states: what a kill can cost. A new best is saved at once; 0 saves at evaluations only.",
    ),
    click.option("--tensorboard/--no-tensorboard", default=True, help="Write a TensorBoard log to OUTPUT/log."),
    click.option("--accept-changes", is_flag=True, help="Go on from a saved state although settings differ."),
    click.option("--restart", is_flag=True, help="Throw away a saved state in OUTPUT."),
)


def _hyper_options(method: Method, prefix: str = "") -> Callable[[_F], _F]:
    """One option per hyper-parameter that the method uses, with the paper's value as default."""
    defaults = hyper_parameters(method)
    known = {knob.name: knob for knob in fields(HyperParameters)}
    options = []
    for name in knobs_of(method):
        value = getattr(defaults, name)
        flag = f"--{prefix}{name}".replace("_", "-")
        kind: Any = _PRECISIONS if name == "precision" else type(value)
        shown = f"{flag}/--no-{flag[2:]}" if isinstance(value, bool) else flag
        options.append(
            click.option(
                shown,
                f"{prefix}{name}",
                type=None if isinstance(value, bool) else kind,
                default=value,
                show_default=True,
                help=f"{known[name].metadata['help']}.",
            )
        )
    return _stacked(*options)


def _command(method: Method, summary: str, data: str) -> None:
    """Register `tune METHOD`."""

    @tune_group.command(method, short_help=summary.splitlines()[0], help=summary)
    @click.option(
        "--checkpoint",
        required=method != "contrastive",
        type=ANY_PATH,
        help="Starting weights." if method != "contrastive" else "Starting weights; random ones without.",
    )
    @click.option("--data", required=True, type=ANY_PATH, help=data)
    @_run_options
    @_model_options
    @_hyper_options(method)
    def command(**options: Any) -> None:
        _run(method, options)

    del command


def _run(method: Method, options: dict[str, Any]) -> None:
    as_json = options.pop("as_json")
    hyper = _hyper(method, options)
    realign = _hyper("realign", options, _SECOND_STAGE) if method == "2sft" else None
    click.echo("loading torch and open_clip …", err=True)
    with needs_extra("tune", "tuning"):
        from mcip_qdrant.cli.tune_output import TuneBar
        from mcip_qdrant.tuning.config import TuneConfig
        from mcip_qdrant.tuning.train import run
    config = TuneConfig(method=method, hyper=hyper, realign_hyper=realign, **options)
    with TuneBar() as bar:
        report = run(config, bar)
    if _speaks():
        if as_json:
            echo_json(report.as_json(), indent=None)
        else:
            click.echo(_told(report))


def _hyper(method: Method, options: dict[str, Any], prefix: str = "") -> HyperParameters:
    given = {name: options.pop(f"{prefix}{name}") for name in knobs_of("gpr" if method == "2sft" else method)}
    return hyper_parameters(method, **given)


def _speaks() -> bool:
    """Whether this is the process whose output people read, among those that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def _told(report: TuneReport) -> str:
    lines = [
        f"{report.method}: {report.steps} steps in {report.seconds:.0f} s{', stopped early' if report.stopped_early else ''}"
    ]
    if report.best is not None:
        start = "" if report.start is None else f", {report.start:.4f} before"
        lines.append(f"{report.metric} {report.best:.4f} at step {report.best_step}{start}")
    if report.unreadable:
        lines.append(f"{report.unreadable} images could not be used; others stood in {report.replaced} times")
    lines += [notice for notice in report.notices if notice.startswith("no gain")]
    return "\n".join([*lines, f"weights written: {report.model}"])


_command(
    "gpr",
    "Image search by class labels: ArcMargin on the image tower, projector kept (GPR-FT).\n\n"
    "The text tower stays as it is, so text search suffers: `tune realign` wins it back.",
    "Images with classes: a folder of CLASS/image.jpg, or a .csv / .jsonl with the columns image, class.",
)
_command(
    "mcip",
    "Image search without losing text: ArcMargin and MCArcMargin together, text tower frozen (MCIP).",
    "Images with classes and captions: OUTPUT/captions.jsonl of `tune captions`, or any .csv / .jsonl with the columns "
    "image, class, captions.",
)
_command(
    "realign",
    "The text tower follows a tuned image tower: InfoNCE on pairs, images frozen and encoded once (Re-A).",
    "Images with captions: a .csv / .jsonl with the columns image, captions.",
)
_command(
    "contrastive",
    "Both towers on image-caption pairs by InfoNCE, from random weights if there is no --checkpoint.\n\nNot part of the paper.",
    "Images with captions: a .csv / .jsonl with the columns image, captions.",
)


@tune_group.command("2sft", short_help="GPR-FT, then re-alignment, as one run.")
@click.option("--checkpoint", required=True, type=ANY_PATH, help="Starting weights.")
@click.option("--data", required=True, type=ANY_PATH, help="Images with classes, for the first stage.")
@click.option("--pairs", type=ANY_PATH, help="Images with captions, for the second stage. [default: --data]")
@_run_options
@_model_options
@_hyper_options("gpr")
@_hyper_options("realign", _SECOND_STAGE)
def _two_stages(**options: Any) -> None:
    """GPR-FT, then re-alignment (2SFT): the stages are in OUTPUT/gpr and OUTPUT/realign, the result in OUTPUT/model.pth.

    Options that start with --realign- are those of the second stage.
    """
    _run("2sft", options)


@tune_group.command("captions")
@click.option(
    "--checkpoint", required=True, type=ANY_PATH, help="Weights of the model that compares images and captions."
)
@click.option("--data", required=True, type=ANY_PATH, help="Images: a folder of classes or a table.")
@click.option(
    "--caption-file",
    required=True,
    type=ANY_PATH,
    help="One caption a line, or a .csv / .jsonl with the column caption.",
)
@click.option("--output", required=True, type=ANY_PATH, help="Folder for captions.jsonl and the stored vectors.")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Captions per image at most.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    default=0.27,
    show_default=True,
    help="Cosine that a caption must exceed; the paper's value belongs to its model.",
)
@click.option("--precision", type=_PRECISIONS, default="auto", show_default=True)
@_model_options
def _captions(
    model: str,
    checkpoint: Path,
    quick_gelu: bool | None,
    base: str | None,
    tokenizer: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find captions for images without any: the 20 nearest of a large caption file, those above a threshold kept.

    Writes OUTPUT/captions.jsonl, a table that `tune mcip` takes as --data. Started again after a kill it goes on.
    """
    click.echo("loading torch and open_clip …", err=True)
    with needs_extra("tune", "tuning"):
        from mcip_qdrant.cli.tune_output import TuneBar
        from mcip_qdrant.tuning.captions import CaptionConfig, find_captions
        from mcip_qdrant.tuning.student import Source
    source = Source(model, checkpoint, quick_gelu, base, tokenizer)
    with TuneBar() as bar:
        report = find_captions(CaptionConfig(source=source, **options), bar)
    if not _speaks():
        return
    if as_json:
        echo_json({**asdict(report), "table": str(report.table)}, indent=None)
    else:
        click.echo(_captions_told(report))


def _captions_told(report: CaptionReport) -> str:
    low, middle, high = report.best_cosine
    return "\n".join(
        [
            f"{report.captions} captions for {report.images} images: {report.mean_per_image:.1f} each, {report.without} without",
            f"cosine of the best caption: {low:.3f} / {middle:.3f} / {high:.3f} (10th, 50th, 90th percentile)",
            *report.notices,
            f"table written: {report.table}",
        ]
    )
