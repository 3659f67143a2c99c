"""What there is in the small world: scenes of two things, in groups whose members no caption can tell apart.

A *scene* is one instance: the thing that several pictures are views of. Its coarse facts (shape, colour, pattern, size,
relation) are what captions speak of. Its fine detail (exact hue, proportions, texture, arrangement, a mark) is what
captions never speak of. A *group* is a set of scenes with the same coarse facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np

COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "heart")
PATTERNS: Final = ("plain", "striped", "dotted", "checked")
RELATIONS: Final = ("above", "below", "beside")
Size = Literal["large", "small"]
Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
WORLD_SEED: Final = 1  # of the world that the committed model was trained on

# One frozen legacy stream per (world seed, purpose, number): numpy never changes RandomState's numbers, and no draw
# depends on how many came before it elsewhere.
_COMBINATIONS, _GROUPS, _DETAIL = 1, 2, 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Kind:
    """The coarse facts of one thing, all that a caption can say about it besides its size."""

    pattern: str
    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Detail:
    """The fine detail of one thing. Angles in degrees; the rest are fractions, see `render` for what they do."""

    hue_shift: float
    saturation: float
    brightness: float
    contrast: float
    aspect: float
    shape_parameter: float
    texture_period: float
    texture_angle: float
    texture_phase: float
    outline: float


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where the small thing lies as seen from the large one, and the mark on the large one. Angles in degrees."""

    angle: float
    gap: float
    large_radius: float
    small_radius: float
    mark_angle: float
    mark_distance: float
    mark_radius: float
    mark_hue: float


@dataclass(frozen=True, slots=True)
class Group:
    """Coarse facts of a scene: the large thing is `relation` the small one."""

    large: Kind
    small: Kind
    relation: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One instance. `number` is unique over all splits of a world."""

    number: int
    group: Group
    large: Detail
    small: Detail
    arrangement: Arrangement


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How much there is of each split: groups, scenes per group, views per scene."""

    groups: int
    scenes_per_group: int
    views: int


SIZES: Final[dict[Split, WorldSize]] = {
    "train": WorldSize(groups=850, scenes_per_group=3, views=10),
    "val": WorldSize(groups=150, scenes_per_group=3, views=3),
    "test": WorldSize(groups=600, scenes_per_group=4, views=3),
}


def random_stream(*numbers: int) -> np.random.RandomState:
    """A stream that depends on these non-negative numbers alone, the same on every machine and numpy version."""
    return np.random.RandomState(np.array(numbers, dtype=np.uint32))


def build_scenes(split: Split, *, seed: int, size: WorldSize | None = None) -> list[Scene]:
    """All scenes of a split, group after group.

    Scenes of different splits are different. A third of the groups of `val` and of `test` have the coarse facts of a
    training group, a third have facts that no training group has, made of kinds that training has, and a third contain a
    kind (such as *striped blue circle*) that neither training nor the other of the two splits has.
    """
    size = size or SIZES[split]
    first = SPLITS.index(split) * 1_000_000
    scenes = []
    for position, group in enumerate(build_groups(split, seed=seed, count=size.groups)):
        for member in range(size.scenes_per_group):
            number = first + position * 1000 + member
            scenes.append(_scene(number, group, random_stream(seed, _DETAIL, number)))
    return scenes


def held_out_kinds(*, seed: int) -> dict[Split, list[Kind]]:
    """Kinds by the split that alone may use them: 9 for `val`, 9 for `test`, and under `train` the 126 of everybody."""
    kinds = [Kind(pattern, colour, shape) for pattern in PATTERNS for colour in COLOURS for shape in SHAPES]
    order = random_stream(seed, _COMBINATIONS).permutation(len(kinds))
    shuffled = [kinds[index] for index in order]
    return {"val": shuffled[:9], "test": shuffled[9:18], "train": shuffled[18:]}


def build_groups(split: Split, *, seed: int, count: int) -> list[Group]:
    """The first `count` groups of a split, all different; see `build_scenes` for what they share with training."""
    kinds = held_out_kinds(seed=seed)
    train = _new_groups(kinds["train"], None, SIZES["train"].groups, random_stream(seed, _GROUPS, 0), avoid=set())
    if split == "train":
        if count > len(train):
            raise ValueError(f"the small world has {len(train)} training groups, {count} asked for")
        return train[:count]
    stream = random_stream(seed, _GROUPS, SPLITS.index(split))
    known = [train[index] for index in stream.permutation(len(train))[: count // 3]]
    new = _new_groups(kinds["train"], None, count // 3, stream, avoid=set(train))
    unseen = _new_groups(kinds["train"], kinds[split], count - len(known) - len(new), stream, avoid=set())
    # Interleaved, so that any first part of a split has all three kinds of groups.
    mixed = [group for triple in zip(known, new, unseen, strict=False) for group in triple]
    return mixed + unseen[len(known) :]


def _new_groups(
    kinds: Sequence[Kind],
    special: Sequence[Kind] | None,
    count: int,
    stream: np.random.RandomState,
    *,
    avoid: set[Group],
) -> list[Group]:
    found: list[Group] = []
    taken = set(avoid)
    while len(found) < count:
        large, small = _pick(special or kinds, stream), _pick(kinds, stream)
        if special is not None and stream.random_sample() < 0.5:
            large, small = small, large
        group = Group(large, small, _pick(RELATIONS, stream))
        # Two things of one colour and shape would make captions that name only these ambiguous to a reader.
        if group not in taken and (large.colour, large.shape) != (small.colour, small.shape):
            taken.add(group)
            found.append(group)
    return found


def _pick(items: Sequence[_T], stream: np.random.RandomState) -> _T:
    return items[int(stream.random_sample() * len(items))]


def _scene(number: int, group: Group, stream: np.random.RandomState) -> Scene:
    between = stream.uniform
    # Direction from the large thing to the small one; y grows downwards, as in pictures.
    straight = {"above": 90.0, "below": -90.0, "beside": 180.0 * float(stream.random_sample() < 0.5)}[group.relation]
    arrangement = Arrangement(
        angle=straight + between(-20, 20),
        gap=between(0.0, 0.16),
        large_radius=between(0.42, 0.52),
        small_radius=between(0.24, 0.31),
        mark_angle=between(0, 360),
        mark_distance=between(0.0, 0.45),
        mark_radius=between(0.12, 0.2),
        mark_hue=between(0, 360),
    )
    return Scene(number, group, _detail(stream), _detail(stream), arrangement)


def _detail(stream: np.random.RandomState) -> Detail:
    between = stream.uniform
    return Detail(
        hue_shift=between(-9, 9),
        saturation=between(0.65, 1.0),
        brightness=between(0.65, 1.0),
        contrast=between(0.35, 0.6) * (1 if stream.random_sample() < 0.5 else -1),
        aspect=between(0.78, 1.28),
        shape_parameter=between(0, 1),
        texture_period=between(0.38, 0.72),
        texture_angle=between(0, 180),
        texture_phase=between(0, 1),
        outline=between(0.0, 0.14),
    )
