"""`mcip-qdrant export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import click
from tqdm import tqdm

from mcip_qdrant.cli.options import ANY_PATH
from mcip_qdrant.export.presets import PRESETS
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision


def _precisions(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[Precision, ...]:
    chosen = tuple(dict.fromkeys(item.strip() for item in value.split(",") if item.strip()))
    if not chosen or not set(chosen) <= {"fp32", "fp16", "int8"}:
        raise click.BadParameter("a comma-separated list of fp32, fp16 and int8")
    return cast("tuple[Precision, ...]", chosen)


_RELEASED = "\n".join(f"  {name}: {preset.checkpoint_url}" for name, preset in PRESETS.items())


@click.command("export", epilog=f"\b\nThe released checkpoints of the presets:\n{_RELEASED}")
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help=f"Preset {' or '.join(PRESETS)}, any open_clip architecture name, or local-dir:DIR with "
    "open_clip's open_clip_config.json.",
)
@click.option(
    "--checkpoint",
    type=ANY_PATH,
    help="Weights: .pth, .pt or .safetensors; code in it is refused, never run. Either this or --pretrained.",
)
@click.option(
    "--pretrained",
    metavar="TAG",
    help="Weights: a tag that open_clip has registered (downloaded). Either this or --checkpoint.",
)
@click.option("--output", required=True, type=ANY_PATH, help="Bundle directory to write.")
@click.option(
    "--tokenizer",
    type=ANY_PATH,
    help="Local folder with the Hugging Face tokenizer's files, where the model needs one.",
)
@click.option(
    "--precision",
    "precisions",
    default="fp32,fp16",
    show_default=True,
    callback=_precisions,
    help="Variants to write: fp32 (CPU), fp16 (GPU), int8 (faster CPU).",
)
@click.option(
    "--quick-gelu/--no-quick-gelu",
    default=None,
    help="Activation the checkpoint was trained with, where open_clip's registered tags of the architecture differ.",
)
@click.option(
    "--base",
    metavar="TAG",
    help="Registered tag that the checkpoint was fine-tuned from: its activation and preprocessing apply.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is already at --output.")
def export_command(
    model: str,
    checkpoint: Path | None,
    pretrained: str | None,
    output: Path,
    tokenizer: Path | None,
    precisions: tuple[Precision, ...],
    quick_gelu: bool | None,
    base: str | None,
    force: bool,
) -> None:
    """Turn an open_clip checkpoint into a verified ONNX bundle.

    The weights come from exactly one of --checkpoint FILE and --pretrained TAG.

    Every graph is compared with torch on 64 pictures and 64 texts before anything is written; a variant that misses its bound
    fails the export.

    \b
    Examples:
      mcip-qdrant export --model mcip-vit-l-14-336 --checkpoint MCIP-ViT-L-14-336.pth --output bundle
      mcip-qdrant export --model mcip-vit-so400m-14-siglip-384 --checkpoint MCIP.pth --tokenizer DIR --output bundle
      mcip-qdrant export --model ViT-B-32 --checkpoint mine.safetensors --quick-gelu --output bundle
    """
    if (checkpoint is None) == (pretrained is None):
        raise click.UsageError("give exactly one of --checkpoint FILE and --pretrained TAG")
    if pretrained is not None and (quick_gelu is not None or base is not None):
        raise click.UsageError(
            "--pretrained TAG follows the tag's own settings; leave out --quick-gelu / --no-quick-gelu and --base"
        )
    click.echo("loading torch and open_clip …", err=True)
    with needs_extra("cpu,export", "export"):
        from mcip_qdrant.export.bundle_writer import ExportRequest, Steps, export_bundle
    request = ExportRequest(
        model=model,
        output=output,
        checkpoint=checkpoint,
        pretrained=pretrained,
        tokenizer=tokenizer,
        precisions=precisions,
        quick_gelu=quick_gelu,
        base=base,
        force=force,
    )
    with _StepBars() as bars:
        bundle = export_bundle(request, Steps(begin=bars.begin, advance=bars.advance))
    manifest = bundle.manifest
    for graph in manifest.graphs:
        size = sum(graph.bytes.values()) / 1e6
        click.echo(
            f"{graph.file:24} {size:8.1f} MB  lowest cosine to torch {graph.parity.minimum:.6f} (bound {graph.parity.bound})"
        )
    click.echo(
        f"{manifest.model}, {manifest.activation}, {manifest.embedding_dim} dimensions, space_id {manifest.space_id}"
    )
    click.echo(f"bundle written: {output}")


class _StepBars:
    """One progress bar per step of the export, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, name: str, total: int | None) -> None:
        self._close()
        if total is None:
            click.echo(f"{name} …", err=True)
        else:
            self._bar = tqdm(total=total, desc=name, unit="item", file=sys.stderr, leave=True, dynamic_ncols=True)

    def advance(self, items: int) -> None:
        if self._bar is not None:
            self._bar.update(items)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> _StepBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
