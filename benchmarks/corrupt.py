"""One truncated JPEG among 1,000: what our command line does, and what a fastembed loop into `upload_points` does.

A tiny model, because speed does not matter here. Shown for each: exit, points in the collection, and whether it said
which file was bad. fastembed is tried in one process and with `parallel=2`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _harness import Fact, Script, report, say
from _models import FASTEMBED_NAME, photos, tiny


def main() -> None:
    """Try all three and print."""
    script = Script(__doc__ or "", rounds=1)
    script.parser.add_argument("--photos", type=int, default=1000, help="how many, the bad one included (%(default)s)")
    options = script.parse()
    model = tiny(options.work)
    count = options.photos
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bad = with_one_truncated(photos(options.work, count, 640, 480), work / "photos")
        say("ours")
        ours_met, ours = run_ours(work, model.bundle, bad, count)
        config = {"fastembed": str(model.fastembed), "fastembed_name": FASTEMBED_NAME, "photos": str(work / "photos")}
        say("fastembed")
        alone = run_fastembed({**config, "qdrant": str(work / "alone")}, bad)
        say("fastembed, parallel")
        parallel = run_fastembed({**config, "qdrant": str(work / "parallel"), "parallel": 2}, bad)
    row = Fact(
        f"one truncated file among {count:,}",
        "fastembed + `upload_points`",
        f"{count - 1} in, 1 dead letter",
        ours,
        ours_met,
        f"fastembed: {alone}; with `parallel=2`: {parallel}",
    )
    report([row], as_json=options.json)


def with_one_truncated(source: Path, target: Path) -> str:
    """The same photos, the middle one cut in half; returns that one's name."""
    shutil.copytree(source, target, copy_function=os.link if same_device(source, target.parent) else shutil.copyfile)
    victim = sorted(target.iterdir())[len(list(target.iterdir())) // 2]
    data = victim.read_bytes()
    victim.unlink()  # it may be a link to the sound photo
    victim.write_bytes(data[: len(data) // 2])
    return victim.name


def same_device(one: Path, other: Path) -> bool:
    """Whether hard links between the two are possible."""
    return one.stat().st_dev == other.stat().st_dev


def run_ours(work: Path, bundle: Path, bad: str, count: int) -> tuple[bool, str]:
    """`mcip-qdrant ingest`."""
    failures = work / "failures.jsonl"
    command = [sys.executable, "-W", "ignore", "-m", "mcip_qdrant", "ingest", work / "photos", "--bundle", bundle]
    command += ["--device", "cpu", "--qdrant", work / "ours", "--failures", failures, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 3}:
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)
    letters = [json.loads(line) for line in failures.read_text().splitlines()]
    named = len(letters) == 1 and letters[0]["key"].endswith(bad)
    met = named and (done.returncode, result["points"], result["failed"]) == (3, count - 1, 1)
    reason = letters[0]["reason"] if letters else "none"
    measured = f"**{result['points']} in, {result['failed']} dead letter** (reason `{reason}`, file named), exit code {done.returncode}"
    return met, measured


def run_fastembed(config: Mapping[str, Any], bad: str) -> str:
    """The fastembed loop; two minutes without an end count as hanging."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("_loads.py")),
        "fastembed",
        json.dumps(config),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return f"hangs, {points_in(config['qdrant'])} points"
    if done.returncode == 0:
        return f"finishes, {points_in(config['qdrant'])} points"
    last = done.stderr.strip().splitlines()[-1]
    named = "file named" if bad in done.stderr else "file not named"
    return f"ends with `{last[:80]}`, {named}, {points_in(config['qdrant'])} points"


def points_in(place: str) -> int:
    """Points that reached the disk."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=place)
    found = client.count("images").count if client.collection_exists("images") else 0
    client.close()
    return int(found)


if __name__ == "__main__":
    main()
