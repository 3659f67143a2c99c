"""What every benchmark here shares: peers in processes of their own, interleaved rounds, void ratios, one table row.

A peer is a process that has loaded its model, and does one round of work each time it is asked. Peers take turns
(A B C, then C B A …) after one warm-up round; while one works the others wait for their standard input. A ratio is
made within a round, and the figure is the median of the rounds, with the lowest and the highest beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST_COSINE = 0.9999
"""Peers whose vectors differ by more have not done the same work: their ratio means nothing."""

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. `ratios` has one value per round; `target` None means that the row is for information."""

    what: str
    against: str
    target: float | None
    ratios: Sequence[float]
    note: str = ""

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.ratios)

    def markdown(self) -> str:
        """The row as `docs/benchmarks.md` shows it."""
        target = "–" if self.target is None else f"{self.target:g}"
        verdict = "–" if self.target is None else "yes" if self.median >= self.target else "**no**"
        measured = f"**{self.median:.2f}** ({min(self.ratios):.2f}–{max(self.ratios):.2f}, {len(self.ratios)} rounds)"
        return f"| {self.what} | {self.against} | {target} | {measured} | {verdict} | {self.note} |"


@dataclass(frozen=True, slots=True)
class Fact:
    """A row whose figure is no ratio of times."""

    what: str
    against: str
    target: str
    measured: str
    met: bool | None
    note: str = ""

    def markdown(self) -> str:
        """The row as `docs/benchmarks.md` shows it."""
        verdict = {True: "yes", False: "**no**", None: "–"}[self.met]
        return f"| {self.what} | {self.against} | {self.target} | {self.measured} | {verdict} | {self.note} |"


HEADER = (
    "| what | against | at least | measured: median (lowest–highest) | reached | beside it |\n|---|---|---|---|---|---|"
)


class Peer:
    """A process that works when told to. `script` must call `serve`."""

    def __init__(self, name: str, script: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self.vectors: NDArray[np.float32] | None = None
        self._file = tempfile.NamedTemporaryFile(suffix=".npy")  # noqa: SIM115  lives as long as the peer
        config = {**config, "vectors": self._file.name}
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), name, json.dumps(config)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self) -> dict[str, Any]:
        """Let it work once; its figures, `seconds` among them."""
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"peer {self.name} ended with exit code {self._process.wait()}")
        self.vectors = np.load(self._file.name)
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._file.close()


def serve(peers: Mapping[str, Callable[[Mapping[str, Any]], Callable[[], tuple[dict[str, Any], Any]]]]) -> None:
    """Be a peer: build the one named on the command line, then do a round for each line on standard input.

    A round returns its figures and its vectors, in the order of the inputs.
    """
    config = json.loads(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr
    work = peers[sys.argv[1].split(":")[0]]({**config, "variant": sys.argv[1].partition(":")[2]})
    for _ in sys.stdin:
        figures, vectors = work()
        np.save(config["vectors"], np.asarray(vectors, dtype=np.float32))
        print(json.dumps(figures), file=answers, flush=True)


def interleave(peers: Sequence[Peer], rounds: int, check: Callable[[Sequence[Peer]], None]) -> dict[str, list[Figures]]:
    """One warm-up, then `rounds` rounds; `check` sees everybody's vectors after each. Peers are closed at the end."""
    results: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
    for number in range(rounds + 1):
        for peer in peers if number % 2 else reversed(peers):
            figures = peer.round()
            if number:
                results[peer.name].append(figures)
        check(peers)
        say(f"round {number} of {rounds}" if number else "warm-up done")
    for peer in peers:
        peer.close()
    return results


def ratios(results: Mapping[str, Sequence[Figures]], ours: str, theirs: str, key: str = "seconds") -> list[float]:
    """How many times as fast as `theirs` `ours` was, per round."""
    return [their[key] / our[key] for our, their in zip(results[ours], results[theirs], strict=True)]


def require_same(vectors: Mapping[str, Any]) -> float:
    """The lowest cosine between any peer and the first one, row by row; ends the program where it is too low."""
    (first, reference), *others = vectors.items()
    lowest = 1.0
    for name, other in others:
        cosine = cosines(reference, other)
        if not cosine.min() >= LOWEST_COSINE:
            raise SystemExit(f"VOID: cosine between {first} and {name} is {cosine.min():.6f}, below {LOWEST_COSINE}")
        lowest = min(lowest, float(cosine.min()))
    return lowest


def same_vectors(peers: Sequence[Peer]) -> None:
    """`check` for `interleave`: all peers gave the same vectors."""
    require_same({peer.name: peer.vectors for peer in peers})


def cosines(first: Any, second: Any) -> NDArray[np.float64]:
    """Cosine of each row of one with the same row of the other."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise SystemExit(f"VOID: {a.shape} vectors against {b.shape}")
    cosine: NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Script:
    """The command line that all scripts share."""

    description: str
    rounds: int = 5
    parser: argparse.ArgumentParser = field(init=False)

    def __post_init__(self) -> None:
        self.parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.parser.add_argument("--json", action="store_true", help="print the rows as JSON, every round included")
        self.parser.add_argument(
            "--rounds",
            type=int,
            default=self.rounds,
            help="rounds after the warm-up; under 5 is a smoke test (default: %(default)s)",
        )
        self.parser.add_argument(
            "--work",
            type=Path,
            default=Path(tempfile.gettempdir()) / "mcip-qdrant-benchmarks",
            help="models and photos are made here once, 2 GB (default: a folder in the system's temporary folder)",
        )

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Options, with the work folder made."""
        options = self.parser.parse_args(arguments)
        options.work.mkdir(parents=True, exist_ok=True)
        return options


def report(rows: Sequence[Row | Fact], *, as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        print(json.dumps([{**asdict(row), "markdown": row.markdown()} for row in rows], indent=1, ensure_ascii=False))
        return
    print(HEADER)
    for row in rows:
        print(row.markdown())
