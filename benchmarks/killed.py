"""kill -9 at half of a load, then the same again: how much of the work that was done is done twice.

Ours is `ingest` into embedded Qdrant; the peer is fastembed's `ImageEmbedding` into `upload_points`, with ids that a
restart repeats, so that nothing doubles. Each runs in a process that reports how many images it has embedded; at half of
them it gets SIGKILL, and is started again. Repeated = embedded before + embedded after - images, as a share of embedded
before. Lost and double are counted in the collection afterwards.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _harness import Fact, Script, report, say
from _models import FASTEMBED_NAME, photos, vit_b_32


def main() -> None:
    """Kill, restart, count, print."""
    script = Script(__doc__ or "", rounds=3)
    script.parser.add_argument("--photos", type=int, default=256, help="how many (default: %(default)s)")
    options = script.parse()
    model = vit_b_32(options.work)
    folder = photos(options.work, options.photos, 640, 480)
    config = {
        "bundle": str(model.bundle),
        "fastembed": str(model.fastembed),
        "fastembed_name": FASTEMBED_NAME,
        "photos": str(folder),
    }
    outcomes: dict[str, list[tuple[float, int, int]]] = {"ours": [], "fastembed": []}
    for number in range(options.rounds):
        for name, results in outcomes.items():
            results.append(killed_once(name, config, options.photos))
        say(f"round {number + 1} of {options.rounds}")
    described = {name: describe(results) for name, results in outcomes.items()}
    # What can be in hand: one batch in the encoder, three on their way to Qdrant.
    limit = 4 * 16 / (options.photos // 2)
    met = all(share <= limit and lost == double == 0 for share, lost, double in outcomes["ours"])
    row = Fact(
        f"kill -9 at half of {options.photos} images, restart; {options.rounds} times",
        "fastembed + `upload_points`",
        "only what was in hand repeated; 0 lost, 0 double",
        described["ours"],
        met,
        f"fastembed: {described['fastembed']}",
    )
    report([row], as_json=options.json)


def killed_once(name: str, config: Mapping[str, Any], count: int) -> tuple[float, int, int]:
    """Repeated share of the work, images lost, images double."""
    with tempfile.TemporaryDirectory() as place:
        config = {**config, "qdrant": place}
        before = load(name, config, kill_at=count // 2)
        after = load(name, config, kill_at=None)
        keys = stored_keys(place)
    return (before + after - count) / before, count - len(set(keys)), len(keys) - len(set(keys))


def load(name: str, config: Mapping[str, Any], *, kill_at: int | None) -> int:
    """Run one load; kill it once it has embedded `kill_at` images. Returns how many it had embedded."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("_loads.py")), name, json.dumps(config)]
    embedded, last = 0, ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            last = line.strip()
            if last.isdigit():
                embedded = int(last)
                if kill_at is not None and embedded >= kill_at:
                    process.send_signal(signal.SIGKILL)
    if (last == "done") != (kill_at is None):
        raise SystemExit(f"{name}: ended with {last!r}, exit code {process.returncode}")
    return embedded


def stored_keys(place: str) -> list[str]:
    """Keys of all points."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=place)
    records, _ = client.scroll("images", limit=1_000_000, with_payload=["key"])
    client.close()
    return [str((record.payload or {})["key"]) for record in records]


def describe(results: list[tuple[float, int, int]]) -> str:
    """Shares as one phrase."""
    shares = sorted(share for share, _, _ in results)
    lost, double = (sum(result[column] for result in results) for column in (1, 2))
    return (
        f"**{shares[len(shares) // 2]:.0%} repeated** ({shares[0]:.0%}–{shares[-1]:.0%}), {lost} lost, {double} double"
    )


if __name__ == "__main__":
    main()
