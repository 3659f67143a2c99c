"""Class names and prompt templates -> one vector per class, as open_clip builds its zero-shot classifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.embed import Embedder

DEFAULT_TEMPLATES: Final = ("a photo of a {}.",)


def class_vectors(embedder: Embedder, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """One vector per class: the mean of the unit vectors of all its prompts, brought to unit norm again; `[C, D]`.

    Classes of one name have one vector, equal in every bit. Source: the zero-shot classifier of the authors' released code,
    which is open_clip's build_zero_shot_classifier. The usual factor 100 before the softmax does not change which class is
    nearest.
    """
    # Encoded once: in another batch the same prompt may be rounded differently.
    different = list(dict.fromkeys(names))
    prompts = [template.replace("{}", name) for name in different for template in templates]
    rows = embedder.texts(prompts, "prompts")
    vectors = {}
    for place, name in enumerate(different):
        start = place * len(templates)
        mean = rows[start : start + len(templates)].astype(np.float64).mean(axis=0)
        vectors[name] = mean / np.linalg.norm(mean)
    return np.stack([vectors[name] for name in names]).astype(np.float32)


def repeated_names(names: Sequence[str]) -> list[int]:
    """The classes whose name an earlier class has: `missile` and `sunglasses` stand twice among ImageNet's in open_clip."""
    first: dict[str, int] = {}
    return [number for number, name in enumerate(names) if first.setdefault(name, number) != number]


def read_templates(path: Path) -> tuple[str, ...]:
    """Prompt templates, one per line, `{}` where the class name goes.

    Raises:
        SourceError: unreadable, empty, or a line without `{}`.
    """
    lines = read_lines(path)
    if wrong := next((line for line in lines if "{}" not in line), None):
        raise SourceError(f"{path}: the template {wrong!r} has no {{}} for the class name")
    if not lines:
        raise SourceError(f"{path} holds no template")
    return tuple(lines)


def read_class_names(path: Path, folders: Sequence[str]) -> list[str]:
    """Words for each class: JSON `{folder name: words}`, or a JSON list or text lines in the order of the sorted folders.

    Raises:
        SourceError: unreadable, more or fewer names than classes, or a class without words.
    """
    if path.suffix != ".json":
        names: object = read_lines(path)
    else:
        try:
            names = json.loads(_text(path))
        except (ValueError, RecursionError) as exc:
            raise SourceError(f"{path} is not JSON: {exc}") from exc
    if isinstance(names, dict):
        names = [names.get(folder) for folder in folders]
    if not isinstance(names, list):
        raise SourceError(f"{path}: expected words for each class")
    if len(names) != len(folders):
        raise SourceError(f"{path}: {len(names)} names for {len(folders)} classes")
    for folder, name in zip(folders, names, strict=True):
        if not isinstance(name, str) or not name.strip():
            raise SourceError(f"{path}: expected words for each class (the class {folder!r} has none)")
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without spaces around them.

    Raises:
        SourceError: it cannot be read.
    """
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise SourceError(f"{path} cannot be read: {exc}") from exc
