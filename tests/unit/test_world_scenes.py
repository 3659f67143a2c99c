"""The small world: same facts everywhere, disjoint splits, captions that are true and cannot tell members of a group apart."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from mcip_qdrant.world.captions import caption_scene, class_names, holds, words
from mcip_qdrant.world.scenes import SIZES, SPLITS, Group, Kind, WorldSize, build_groups, build_scenes, held_out_kinds

SEED = 1
_COLOURS = {"red", "orange", "yellow", "green", "blue", "purple"}
_SYNONYMS = {
    "big": "large",
    "little": "small",
    "disc": "circle",
    "box": "square",
    "solid": "plain",
    "spotted": "dotted",
    "over": "above",
    "under": "below",
    "beneath": "below",
}


def kinds_of(groups: list[Group]) -> set[Kind]:
    return {kind for group in groups for kind in (group.large, group.small)}


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Group]]:
    return {split: build_groups(split, seed=SEED, count=SIZES[split].groups) for split in SPLITS}


def test_facts_do_not_depend_on_the_process_or_on_how_much_is_asked_for() -> None:
    program = (
        "from mcip_qdrant.world.scenes import *; import hashlib; "
        "print(hashlib.sha256(repr(build_scenes('test', seed=1, size=WorldSize(7, 3, 2))).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1
    one, two = (build_scenes("test", seed=SEED, size=WorldSize(7, members, 2)) for members in (2, 3))
    assert [scene for scene in two if scene.number % 1000 < 2] == one


def test_another_seed_is_another_world() -> None:
    assert build_groups("test", seed=1, count=30) != build_groups("test", seed=2, count=30)


def test_instances_of_the_splits_are_disjoint() -> None:
    scenes = [scene for split in SPLITS for scene in build_scenes(split, seed=SEED)]
    assert len(scenes) == sum(size.groups * size.scenes_per_group for size in SIZES.values())
    assert len({scene.number for scene in scenes}) == len(scenes)
    assert len({dataclasses.astuple(scene)[2:] for scene in scenes}) == len(scenes)


def test_a_third_of_the_groups_is_known_a_third_new_a_third_has_kinds_nobody_else_has(
    groups: dict[str, list[Group]],
) -> None:
    trained, kinds = set(groups["train"]), held_out_kinds(seed=SEED)
    assert not kinds_of(groups["train"]) & ({*kinds["val"]} | {*kinds["test"]})
    for split, other in (("val", "test"), ("test", "val")):
        own = {*kinds[split]}
        known = [group for group in groups[split] if group in trained]
        unseen = [group for group in groups[split] if kinds_of([group]) & own]
        assert len(known) == len(unseen) == len(groups[split]) // 3
        assert not set(known) & set(unseen)
        assert not kinds_of(groups[split]) & {*kinds[other]}


def test_groups_differ_within_a_split(groups: dict[str, list[Group]]) -> None:
    assert all(len(set(found)) == len(found) for found in groups.values())


def test_more_training_groups_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="850 training groups, 851 asked for"):
        build_groups("train", seed=SEED, count=851)


def test_no_caption_tells_members_of_a_group_apart_and_all_are_true() -> None:
    for scene in build_scenes("test", seed=SEED, size=WorldSize(40, 3, 1)):
        captions = caption_scene(scene, 0, seed=SEED)
        assert len({caption.text for caption in captions}) == len(captions) == 5
        assert all(holds(caption.claim, scene.group) for caption in captions)


def parse(text: str) -> Group | None:
    """Read a full caption independently of the code that wrote it: by its words alone."""
    for phrase, word in (("on top of", "above"), ("next to", "beside"), ("at the side of", "beside")):
        text = text.replace(phrase, word)
    found = [_SYNONYMS.get(word, word) for word in text.split()]
    relation = next(word for word in found if word in {"above", "below", "beside"})
    cut = found.index(relation)
    things = {}
    for part in (found[:cut], found[cut + 1 :]):
        colour = next(word for word in part if word in _COLOURS)
        place = part.index(colour)
        things[part[place - 2]] = Kind(part[place - 1], colour, part[place + 1])
    if "small" in found[:cut]:
        relation = {"above": "below", "below": "above", "beside": "beside"}[relation]
    return Group(things["large"], things["small"], relation)


def test_the_first_caption_names_every_coarse_fact() -> None:
    for scene in build_scenes("val", seed=SEED, size=WorldSize(60, 2, 1)):
        assert parse(caption_scene(scene, 0, seed=SEED)[0].text) == scene.group


def test_a_claim_that_differs_in_one_fact_is_false() -> None:
    scene = build_scenes("test", seed=SEED, size=WorldSize(1, 1, 1))[0]
    claim = caption_scene(scene, 0, seed=SEED)[0].claim
    assert claim.second is not None
    for change in ({"colour": "brown"}, {"shape": "hexagon"}, {"pattern": "furry"}, {"size": "tiny"}):
        assert not holds(dataclasses.replace(claim, first=dataclasses.replace(claim.first, **change)), scene.group)
        assert not holds(dataclasses.replace(claim, second=dataclasses.replace(claim.second, **change)), scene.group)
    assert not holds(dataclasses.replace(claim, relation="inside"), scene.group)
    swapped = dataclasses.replace(claim, first=claim.second, second=claim.first)
    assert holds(swapped, scene.group) == (claim.relation == "beside")


def test_the_vocabulary_covers_all_captions() -> None:
    known = set(words())
    for scene in build_scenes("train", seed=SEED, size=WorldSize(100, 1, 1)):
        for caption in caption_scene(scene, 0, seed=SEED):
            assert set(caption.text.split()) <= known
    assert len(class_names()) == len(set(class_names())) == 36
