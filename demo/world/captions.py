"""Sentences about scenes: several wordings of the coarse facts, and whether a sentence is true of a scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mcip_qdrant.world.scenes import COLOURS, PATTERNS, RELATIONS, SHAPES, Group, Kind, Scene, random_stream

_CAPTIONS: Final = 5
_OPPOSITE: Final = {"above": "below", "below": "above", "beside": "beside"}
_RELATION_WORDS: Final = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "beside": ("beside", "next to", "at the side of"),
}
_SIZE_WORDS: Final = {"large": ("large", "big"), "small": ("small", "little")}
_SHAPE_WORDS: Final = {"circle": ("circle", "disc"), "square": ("square", "box")}
_PATTERN_WORDS: Final = {
    "plain": ("plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked",),
}
_OPENINGS: Final = ("", "", "a picture of ", "a photo of ", "this is ")


@dataclass(frozen=True, slots=True)
class Mention:
    """What a sentence says about one thing; None is left unsaid."""

    colour: str
    shape: str
    pattern: str | None = None
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a sentence says: one thing, or a first thing that is `relation` a second one (None: just both there)."""

    first: Mention
    second: Mention | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and what it claims."""

    text: str
    claim: Claim


def holds(claim: Claim, group: Group) -> bool:
    """Whether a claim is true of the scenes of a group."""
    things = ((group.large, "large", group.relation), (group.small, "small", _OPPOSITE[group.relation]))
    for (kind, size, relation), (other, other_size, _) in (things, things[::-1]):
        if not _fits(claim.first, kind, size):
            continue
        if claim.second is None:
            return True
        if _fits(claim.second, other, other_size) and claim.relation in {None, relation}:
            return True
    return False


def caption_scene(scene: Scene, view: int, *, seed: int, count: int = _CAPTIONS) -> list[Caption]:
    """Captions of one picture: the first names every coarse fact, the rest leave some unsaid; all different."""
    stream = random_stream(seed, 5, scene.number, view)

    def chance(share: float) -> bool:
        return bool(stream.random_sample() < share)

    def one_of(words: tuple[str, ...]) -> str:
        return words[int(stream.random_sample() * len(words))]

    def say(mention: Mention) -> str:
        words = [
            one_of(_SIZE_WORDS[mention.size]) if mention.size else "",
            one_of(_PATTERN_WORDS[mention.pattern]) if mention.pattern else "",
            mention.colour,
            one_of(_SHAPE_WORDS.get(mention.shape, (mention.shape,))),
        ]
        phrase = " ".join(word for word in words if word)
        return with_article(phrase)

    captions: dict[str, Caption] = {}
    while len(captions) < count:
        complete = not captions
        mentions = [
            Mention(
                kind.colour,
                kind.shape,
                kind.pattern if complete or chance(0.5) else None,
                size if complete or chance(0.5) else None,
            )
            for kind, size in ((scene.group.large, "large"), (scene.group.small, "small"))
        ]
        relation = scene.group.relation
        if chance(0.5):
            mentions.reverse()
            relation = _OPPOSITE[relation]
        if complete or chance(0.4):
            claim = Claim(mentions[0], mentions[1], relation)
            text = f"{say(mentions[0])} {one_of(_RELATION_WORDS[relation])} {say(mentions[1])}"
        elif chance(0.25):
            claim = Claim(mentions[0], mentions[1])
            text = f"{say(mentions[0])} and {say(mentions[1])}"
        else:
            claim = Claim(mentions[0])
            text = say(mentions[0])
        text = one_of(_OPENINGS) + text
        captions.setdefault(text, Caption(text, claim))
    return list(captions.values())


def with_article(phrase: str) -> str:
    """`a red circle`, `an orange star`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def class_name(kind: Kind) -> str:
    """The class of a thing for classification: colour and shape, such as `red circle`."""
    return f"{kind.colour} {kind.shape}"


def class_names() -> list[str]:
    """All 36 classes, in a fixed order."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def words() -> list[str]:
    """Every word that a caption can hold, sorted: the vocabulary of the tokenizer."""
    return sorted(set(_words()))


def _words() -> Iterator[str]:
    yield from COLOURS
    for options, names in (
        (_SHAPE_WORDS, SHAPES),
        (_PATTERN_WORDS, PATTERNS),
        (_RELATION_WORDS, RELATIONS),
        (_SIZE_WORDS, ("large", "small")),
    ):
        for name in names:
            for phrase in options.get(name, (name,)):
                yield from phrase.split()
    for opening in _OPENINGS:
        yield from opening.split()
    yield from ("a", "an", "and")


def _fits(mention: Mention, kind: Kind, size: str) -> bool:
    return (
        (mention.colour, mention.shape) == (kind.colour, kind.shape)
        and mention.pattern in {None, kind.pattern}
        and mention.size in {None, size}
    )
