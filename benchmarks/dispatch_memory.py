"""Memory of the dispatcher and of Redis while references are dispatched: 1,000,000 against 10,000.

The real command with a real Redis and the test suite's Qdrant server. No image exists: a dispatcher only lists. In place of workers,
this script takes chunks off the queue as fast as they come, at most down to half of the look-ahead, and never settles any: the worst case
for the ledger. Exit code 1 where the bound is missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import redis
from services import qdrant_server, redis_server

LOOK_AHEAD = 32
BOUND = 1.1


@dataclass(frozen=True, slots=True)
class Measured:
    """One dispatch: peak memory of the process, longest queue, what the ledger takes in Redis."""

    references: int
    seconds: float
    peak_mb: float
    longest_queue: int
    ledger_mb: float


def measure(references: int, bundle: Path, work: Path) -> Measured:
    """Dispatch so many references and watch."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        (folder / "archive").mkdir()
        with (folder / "list.txt").open("w", encoding="utf-8") as lines:
            lines.writelines(f"{number // 1000:04d}/photo-{number:08d}.jpg\n" for number in range(references))
        with redis_server(folder / "redis") as broker, qdrant_server(folder / "qdrant") as qdrant:
            client = redis.Redis(port=broker.port, decode_responses=True)
            empty = client.info("memory")["used_memory"]
            command = [sys.executable, "-m", "mcip_qdrant", "ingest", "archive", "--list", "list.txt"]
            command += ["--bundle", str(bundle), "--qdrant", qdrant.url, "--broker", broker.url]
            command += ["--look-ahead", str(LOOK_AHEAD)]
            start = time.perf_counter()
            dispatcher = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                longest = _drain_until_dispatched(client, dispatcher)
                seconds = time.perf_counter() - start
                status = Path(f"/proc/{dispatcher.pid}/status").read_text(encoding="utf-8")
            finally:
                dispatcher.send_signal(signal.SIGINT)
                dispatcher.wait(60)
            ledger = (client.info("memory")["used_memory"] - empty) / 1e6
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    return Measured(references, seconds, peak, longest, ledger)


def _drain_until_dispatched(client: redis.Redis, dispatcher: subprocess.Popen[bytes]) -> int:
    longest = 0
    while True:
        if dispatcher.poll() is not None:
            raise SystemExit(f"the dispatcher ended with exit code {dispatcher.returncode}")
        for queue in client.scan_iter("mcip_qdrant.*.archive", count=1000):
            waiting = int(client.llen(queue))
            longest = max(longest, waiting)
            if waiting > LOOK_AHEAD // 2:
                client.ltrim(queue, 0, LOOK_AHEAD // 2 - 1)
        states = [
            client.hget(f"mcip_qdrant:run:{run}:info", "state") for run in client.zrange("mcip_qdrant:runs", 0, -1)
        ]
        if states == ["dispatched"]:
            return longest
        time.sleep(0.01)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="any bundle: only its manifest is read")
    parser.add_argument("--references", type=int, nargs=2, default=[10_000, 1_000_000])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    few, many = (measure(number, options.bundle.absolute(), options.work) for number in options.references)
    ratio = many.peak_mb / few.peak_mb
    if options.json:
        print(json.dumps({"runs": [asdict(few), asdict(many)], "ratio": ratio, "look_ahead": LOOK_AHEAD}))
    else:
        print("| references | peak memory | longest queue (look-ahead 32) | Redis, nothing settled | seconds |")
        print("|---|---|---|---|---|")
        for one in (few, many):
            print(
                f"| {one.references:,} | {one.peak_mb:.0f} MB | {one.longest_queue} chunks of 256 | {one.ledger_mb:.1f} MB "
                f"| {one.seconds:.1f} |"
            )
        print(f"\npeak memory {ratio:.2f} times (bound {BOUND:g})")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
