"""`mcip-qdrant verify`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from mcip_qdrant.cli.bundle_argument import bundle_argument
from mcip_qdrant.cli.options import device_option, json_option, precision_option
from mcip_qdrant.cli.streams import echo_json
from mcip_qdrant.errors import ConfigurationError
from mcip_qdrant.manifest import Precision


@click.command("verify")
@bundle_argument
@device_option
@precision_option
@json_option
def verify_command(directory: Path, device: str, precision: Precision | None, as_json: bool) -> None:
    """Check a bundle on this machine: every file's hash, then preprocessing, token ids and torch's vectors.

    Runs the graphs that --device would use. Exit code 4 if anything differs; the file or golden item is named.
    """
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.golden import FILE as GOLDEN_FILE
    from mcip_qdrant.session import Device
    from mcip_qdrant.verify import require, verify

    bundle = Bundle.open(directory)
    files = {name for graph in bundle.manifest.graphs for name in graph.bytes}
    files |= {bundle.manifest.tokenizer.file, GOLDEN_FILE}
    total = sum((directory / name).stat().st_size for name in files if (directory / name).is_file())
    with tqdm(total=total, desc="hashes", unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True) as bar:
        bundle.check_hashes(on_bytes=bar.update)
    with tqdm(desc="golden vectors", unit="item", total=128, file=sys.stderr, dynamic_ncols=True) as bar:
        checks = verify(bundle, device=Device.parse(device), precision=precision, on_item=bar.update)
    if as_json:
        rows = [{**asdict(check), "passed": check.passed} for check in checks]
        echo_json({"space_id": bundle.space_id, "passed": all(check.passed for check in checks), "graphs": rows})
    else:
        for check in checks:
            verdict = "ok" if check.passed else "FAILED"
            click.echo(
                f"{check.tower:8} {check.precision} on {check.provider}: lowest cosine {check.agreement.minimum:.6f} "
                f"(bound {check.bound}), same top-10 {check.agreement.top10_agreement:.1%}  {verdict}"
            )
    try:
        require(checks)
    except ConfigurationError as exc:
        raise type(exc)(f"bundle {directory}: {exc}") from exc
    if not as_json:
        click.echo(f"bundle {directory} gives {bundle.manifest.model}'s vectors on this machine")
