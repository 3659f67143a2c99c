"""Which images each step sees, as a function of seed and step alone: a resumed run goes on exactly where it stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_EPOCHS_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of one epoch: which image, and the seed of everything random that happens to it."""

    index: int
    seed: int

    def rng(self) -> random.Random:
        """Its own source of random numbers, from the start."""
        return random.Random(self.seed)  # noqa: S311  augmentation, no secrets


def shuffled(count: int, rng: np.random.Generator) -> Indices:
    """Every index once, in random order: int64 `[count]`."""
    return rng.permutation(count).astype(np.int64)


def class_balanced(labels: Indices, count: int, rng: np.random.Generator) -> Indices:
    """`count` indices in which every class comes equally often, give or take one; its images take turns.

    Args:
        labels: int64 `[N]`; every class that occurs takes part.
        count: length of the result.
        rng: decides the order.
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    rounds = -(-count // len(classes))
    turns = np.concatenate([rng.permutation(len(classes)) for _ in range(rounds)])[:count]
    chosen = np.empty(count, dtype=np.int64)
    grouped = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    for number, members in enumerate(grouped):
        places = np.flatnonzero(turns == number)
        cycles = -(-len(places) // len(members))
        if cycles:
            chosen[places] = np.concatenate([rng.permutation(members) for _ in range(cycles)])[: len(places)]
    return chosen


class Order:
    """The draws of every step of every epoch, for every process.

    Args:
        size: number of samples N.
        batch_size: samples per step and process.
        epochs: passes.
        epoch_share: share of each pass that is used.
        seed: of the whole order.
        balance: int64 `[N]` labels to balance by, or None to draw every sample once per epoch.
        rank, world_size: this process among how many.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        epoch_share: float = 1.0,
        balance: Indices | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch_size = max(1, min(batch_size, size // world_size))
        self.steps_per_epoch = max(1, int(size * epoch_share) // (self.batch_size * world_size))
        self.steps = self.steps_per_epoch * epochs
        self._size = size
        self._seed = seed
        self._balance = balance
        self._rank = rank
        self._world_size = world_size
        self._epoch = lru_cache(_EPOCHS_KEPT)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[Indices, NDArray[np.int64]]:
        rng = np.random.default_rng([self._seed, epoch])
        balance = self._balance
        order = shuffled(self._size, rng) if balance is None else class_balanced(balance, self._size, rng)
        return order, rng.integers(2**62, size=self._size)

    def everywhere(self, step: int) -> list[Draw]:
        """The draws of all processes in one step, those of rank 0 first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, seeds = self._epoch(epoch)
        width = self.batch_size * self._world_size
        # A data set smaller than the number of processes goes round.
        places = np.arange(place * width, (place + 1) * width) % self._size
        return [Draw(int(order[i]), int(seeds[i])) for i in places]

    def here(self, step: int) -> list[Draw]:
        """The draws of this process in one step."""
        return self.everywhere(step)[self._rank * self.batch_size :][: self.batch_size]


@dataclass(frozen=True, slots=True)
class StepsFrom:
    """A batch sampler for torch's DataLoader: this process' draws from one step to the last."""

    order: Order
    start: int

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.order.here, range(self.start, self.order.steps))

    def __len__(self) -> int:
        return self.order.steps - self.start
