"""The paper's table in small: five models and a control, three seeds, on drawn pictures, with the commands that users have.

    python benchmarks/small_world.py            some 42 CPU minutes a seed; stop it when you like, the same call goes on

Every stage of every seed is one `mcip-qdrant tune` command and resumes by itself. Figures go to
`benchmarks/small_world_results/seed-N.json` as each seed ends, and the table into `docs/small-world.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import file_sha256
from mcip_qdrant.world.architecture import FOLDER
from mcip_qdrant.world.archive import TABLE, Picture, data_hash, pictures, write_split
from mcip_qdrant.world.measure import FIGURES, measure
from mcip_qdrant.world.scenes import SPLITS, WORLD_SEED

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SEEDS = (0, 1, 2)
RESULTS = HERE / "small_world_results"
PAGE = REPOSITORY / "docs" / "small-world.md"
MODEL = f"local-dir:{FOLDER.relative_to(REPOSITORY)}"
CAPTION_VIEWS = 2
# Both margin losses keep the paper's s = 30, m = 0.1 and its weights 0.75 and 0.25. Learning rates are those of a small
# model that was trained for minutes; the views of the world are augmentation enough.
PLAIN = ("--squash", 1, "--flip", 0, "--brightness", 0, "--contrast", 0, "--saturation", 0, "--patch-dropout", 0)
QUIET = ("--no-tensorboard", "--no-grad-checkpointing", "--tests-per-epoch", 1, "--save-every", 50)
CONTRASTIVE = ("--epochs", 10, "--batch-size", 128, "--lr", 1e-3, "--warmup-steps", 200, "--weight-decay", 0.05)
MARGIN = ("--epochs", 3, "--lr", 2e-4, "--lr-min", 0, "--proxy-lr", 1e-2)
REALIGN = ("--epochs", 10, "--batch-size", 256, "--lr", 5e-4, "--weight-decay", 0.05, "--text-tensors", 0)
CAPTIONS = ("--top", 20, "--threshold", 0.6)


@dataclass(frozen=True, slots=True)
class Stage:
    """One command: its folder, the stage whose weights it starts from, and its arguments without folders and seed."""

    name: str
    command: str
    start: str | None
    data: str
    arguments: tuple[object, ...]


STAGES = (
    Stage("base", "contrastive", None, TABLE, (*CONTRASTIVE, *PLAIN, *QUIET)),
    Stage("captions", "captions", "base", TABLE, CAPTIONS),
    Stage("mcip", "mcip", "base", "captions.jsonl", (*MARGIN, *PLAIN, *QUIET)),
    Stage("mcip-realign", "realign", "mcip", TABLE, (*REALIGN, *QUIET)),
    Stage("gpr", "gpr", "base", TABLE, (*MARGIN, *PLAIN, *QUIET)),
    Stage("2sft", "realign", "gpr", TABLE, (*REALIGN, *QUIET)),
    Stage("base-realign", "realign", "base", TABLE, (*REALIGN, *QUIET)),
)
ROWS = {
    "base": "base",
    "gpr": "GPR",
    "2sft": "2SFT (GPR + realign)",
    "mcip": "MCIP",
    "mcip-realign": "MCIP + realign",
    "base-realign": "control: base + realign",
}
COLUMNS = {
    "image_map": "image-to-image mAP",
    "knn": "k-NN",
    "zero_shot": "zero-shot",
    "text_recall_at_1": "text-to-image R@1",
    "text_recall_at_5": "text-to-image R@5",
    "short_text_precision_at_5": "short text P@5",
}


def command_line(stage: Stage, seed: int, work: Path) -> list[str]:
    """The stage as a user would type it after `mcip-qdrant`."""
    runs, train = work / f"seed-{seed}", work / "data" / "train"
    data = train / TABLE if stage.data == TABLE else runs / "captions" / stage.data
    made: list[object] = ["tune", stage.command, "--model", MODEL, "--data", data, "--output", runs / stage.name]
    if stage.start is not None:
        made += ["--checkpoint", runs / stage.start / "model.pth"]
    if stage.command == "captions":
        made += ["--caption-file", work / "data" / "captions.txt"]
    else:
        made += ["--validation", work / "data" / "val" / TABLE, "--seed", seed]
    return [str(item) for item in (*made, *stage.arguments)]


def commands(seed: int) -> list[str]:
    """Every stage of a seed as a user would type it in the repository."""
    return [" ".join(["mcip-qdrant", *command_line(stage, seed, Path("build/small-world"))]) for stage in STAGES]


def run_stage(stage: Stage, seed: int, work: Path) -> dict[str, float]:
    """Run a stage unless it is finished; returns the seconds by the clock and on the CPUs of the start that finished it.

    It is finished if it ended with the same command and from the same files; else it is done anew, with its figures.
    """
    folder = work / f"seed-{seed}" / stage.name
    note, figures, asked_note = (folder / name for name in ("seconds.json", "figures.json", "asked.json"))
    arguments = command_line(stage, seed, work)
    asked = {"command": arguments, "files": _read_by(arguments)}
    same = asked_note.is_file() and json.loads(asked_note.read_text()) == asked
    if not (same and note.is_file()):
        began_before = folder.is_dir() and not same
        for old in (note, figures):
            old.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        asked_note.write_text(json.dumps(asked))
        if began_before and stage.command != "captions":
            arguments = [*arguments, "--restart"]
        print("\n$ mcip-qdrant", *arguments, flush=True)
        began, used = time.monotonic(), _cpu_seconds()
        subprocess.run([sys.executable, "-m", "mcip_qdrant", *arguments], check=True, cwd=REPOSITORY)
        taken = {"clock": round(time.monotonic() - began), "cpu": round(_cpu_seconds() - used)}
        note.write_text(json.dumps(taken))
    known: dict[str, float] = json.loads(note.read_text())
    return known


def _read_by(arguments: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files that a command reads and that another stage may have written anew."""
    given = dict(itertools.pairwise(arguments))
    files = [Path(given[flag]) for flag in ("--checkpoint", "--data", "--caption-file") if flag in given]
    return {str(path): file_sha256(path) for path in files if path.is_file()}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures_of(checkpoint: Path, folder: Path, split: Sequence[Picture], kept: Path) -> dict[str, float]:
    """Figures of a checkpoint on a split in `folder`; measured once, then read from `kept`."""
    if not kept.is_file():
        images, encode = encoders(checkpoint)
        found = measure(split, images([folder / picture.path for picture in split]), encode)
        kept.write_text(json.dumps({name: round(value, 4) for name, value in found.items()}))
    measured: dict[str, float] = json.loads(kept.read_text())
    return measured


def encoders(checkpoint: Path) -> tuple[Any, Any]:
    """Functions that turn image files and texts into unit vectors, by the torch model."""
    from contextlib import nullcontext

    import torch

    from mcip_qdrant.tuning.encode import Encoding
    from mcip_qdrant.tuning.student import Source, load_student
    from mcip_qdrant.tuning.trainees import Trainee

    student = load_student(Source(f"local-dir:{FOLDER}", checkpoint), patch_dropout=0.0, seed=0)
    trainee = Trainee(student.model, student.preprocess)
    encoding = Encoding(trainee, student.preprocess, student.tokenizer, torch.device("cpu"), nullcontext, 256, 0)

    def images(paths: list[Path]) -> NDArray[np.float32]:
        made = np.concatenate(list(encoding.images(paths, range(len(paths)))))
        if encoding.unreadable:
            raise SystemExit(f"unreadable: {encoding.unreadable}")
        return made

    def texts(wanted: list[str]) -> NDArray[np.float32]:
        return np.concatenate(list(encoding.texts(wanted, range(len(wanted)))))

    return images, texts


def prepare(work: Path, jobs: int) -> dict[str, list[Picture]]:
    """Draw all splits, and write the caption file for the pseudo-captions."""
    data = work / "data"
    made = {split: write_split(data / split, split, seed=WORLD_SEED, jobs=jobs) for split in SPLITS}
    captions = data / "captions.txt"
    if not captions.is_file():
        texts = [
            caption.text for picture in made["train"] if picture.view < CAPTION_VIEWS for caption in picture.captions
        ]
        captions.write_text("\n".join(dict.fromkeys(texts)) + "\n", encoding="utf-8")
    return made


def run_seed(seed: int, work: Path, made: dict[str, list[Picture]]) -> None:
    """All stages of one seed, their figures on the test split, and the result file."""
    seconds = {stage.name: run_stage(stage, seed, work) for stage in STAGES}
    models = {}
    for name in ROWS:
        folder = work / f"seed-{seed}" / name
        models[name] = figures_of(folder / "model.pth", work / "data" / "test", made["test"], folder / "figures.json")
    found = {
        "seed": seed,
        "world_seed": WORLD_SEED,
        "data_hash": hash_of_test_split(work),
        "figures": models,
        "seconds": seconds,
        "commands": commands(seed),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"seed-{seed}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def finished(seed: int) -> bool:
    """Whether the result of a seed is there.

    Raises:
        SystemExit: it is, and other commands than today's made it.
    """
    path = RESULTS / f"seed-{seed}.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["commands"] != commands(seed):
        raise SystemExit(f"{path} was made by other commands than these: remove it to run the seed again")
    return path.is_file()


def hash_of_test_split(work: Path) -> str:
    """Data hash of the test split, computed once."""
    kept = work / "data" / "hash.txt"
    if not kept.is_file():
        kept.write_text(data_hash(pictures("test", seed=WORLD_SEED), seed=WORLD_SEED))
    return kept.read_text()


def results() -> list[dict[str, Any]]:
    """What is known so far, by seed."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("seed-*.json"))]


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown: mean over seeds, and the lowest and highest beside it."""
    yield "| model | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row, title in ROWS.items():
        cells = []
        for figure in FIGURES:
            values = [result["figures"][row][figure] for result in found]
            spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        yield f"| {title} | {' | '.join(cells)} |"


def write_page() -> None:
    """Put the table of all finished seeds between the two markers of the page."""
    found = results()
    if not found:
        raise SystemExit(f"no result in {RESULTS}: no seed has run")
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- table: written by benchmarks/small_world.py -->", "<!-- end of table -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    seeds = ", ".join(str(result["seed"]) for result in found)
    cpu = statistics.mean(sum(stage["cpu"] for stage in result["seconds"].values()) for result in found) / 60
    note = (
        f"Seeds that have run: {seeds}. Mean over them, lowest and highest in brackets. {cpu:.0f} CPU minutes a seed."
    )
    PAGE.write_text(f"{head}{begin}\n{note}\n\n" + "\n".join(table(found)) + f"\n{end}{tail}", encoding="utf-8")


def main() -> None:
    """Run what has not run yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "small-world", help="pictures and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the training (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that draw (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="only write the page from the result files")
    options = parser.parse_args()
    if not options.table:
        work = options.work.resolve()
        made = prepare(work, options.jobs)
        for seed in options.seeds:
            if not finished(seed):
                run_seed(seed, work, made)
    write_page()
    print("\n".join(table(results())))


if __name__ == "__main__":
    main()
