"""`mcip-qdrant inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from mcip_qdrant.cli.bundle_argument import bundle_argument
from mcip_qdrant.cli.options import json_option
from mcip_qdrant.cli.streams import echo_json
from mcip_qdrant.manifest import Manifest


@click.command("inspect")
@bundle_argument
@json_option
def inspect_command(directory: Path, as_json: bool) -> None:
    """Show what a bundle holds: model, preprocessing, graphs with their parity, space_id."""
    from mcip_qdrant.bundle import Bundle

    manifest = Bundle.open(directory).manifest
    if as_json:
        echo_json(json.loads(manifest.to_json()))
    else:
        click.echo("\n".join(_summary(manifest)))


def _summary(manifest: Manifest) -> list[str]:
    preprocess, tokenizer = manifest.preprocess, manifest.tokenizer
    height, width = preprocess.size
    normalisation = f"mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)} (folded into the graph)"
    lines = [
        f"model        {manifest.model} ({manifest.activation}), {manifest.embedding_dim} dimensions",
        f"space_id     {manifest.space_id}",
        *_rows("source", manifest.source),
        f"created      {manifest.created_at}",
        f"images       {width}x{height}, {preprocess.resize_mode}, {preprocess.interpolation}, {normalisation}",
        f"text         {tokenizer.context_length} tokens, vocabulary {tokenizer.vocab_size}, cleaning {tokenizer.cleaning}",
        *_rows("tools", manifest.tools),
        "",
        f"{'graph':24} {'size':>10}  {'lowest cosine':>13}  {'bound':>7}  {'same top-10':>11}  measured on",
    ]
    for graph in manifest.graphs:
        size = f"{sum(graph.bytes.values()) / 1e6:.1f} MB"
        parity = graph.parity
        lines.append(
            f"{graph.file:24} {size:>10}  {parity.minimum:13.6f}  {parity.bound:7}  {parity.top10_agreement:11.1%}  {parity.provider}"
        )
    return lines


def _rows(title: str, values: Mapping[str, object]) -> list[str]:
    return [
        f"{'' if index else title:12} {name.replace('_', ' ')} {value}"
        for index, (name, value) in enumerate(values.items())
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
