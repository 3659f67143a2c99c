"""Turn one finished model of `small_world.py` into the demo's committed weights, in fp16, with a card of how it was made.

The model is MCIP + realign of seed 0: fixed before any seed had run, not chosen among them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import safetensors.torch
import torch
from small_world import REPOSITORY, commands, figures_of, hash_of_test_split

from mcip_qdrant.world.architecture import CARD, WEIGHTS
from mcip_qdrant.world.archive import write_split
from mcip_qdrant.world.scenes import WORLD_SEED

SEED = 0
MODEL = "mcip-realign"


def main() -> None:
    """Write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "small-world", help="of small_world.py")
    work = parser.parse_args().work.resolve()
    state = torch.load(work / f"seed-{SEED}" / MODEL / "model.pth", weights_only=True)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    WEIGHTS.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: value.contiguous() for name, value in halves.items()}, WEIGHTS)
    # Readable like every other file of the checkout, which save_file does not see to.
    WEIGHTS.chmod(0o644)
    folder = work / "data" / "test"
    measured = figures_of(WEIGHTS, folder, write_split(folder, "test", seed=WORLD_SEED), work / "demo-figures.json")
    card = {
        "model": "MCIP + realign",
        "seed": SEED,
        "world_seed": WORLD_SEED,
        "test_data_hash": hash_of_test_split(work),
        "test_figures": measured,
        "commands": commands(SEED),
    }
    CARD.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.1f} MB, {measured}")


if __name__ == "__main__":
    main()
