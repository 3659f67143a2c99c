"""What a run trains on, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages, labelled, read_table
from mcip_qdrant.tuning.config import TuneConfig
from mcip_qdrant.tuning.material import prepare_material


def _config(data: Path | LabelledImages, method: Any = "gpr", **options: Any) -> TuneConfig:
    return TuneConfig(method=method, model="m", checkpoint=Path("c.pth"), data=data, output=Path("o"), **options)


def _images(names: list[str | None], captions: list[list[str]] | None = None) -> LabelledImages:
    return labelled([(Path(f"{number}.jpg"), name) for number, name in enumerate(names)], captions=captions)


def test_whole_classes_are_kept_for_image_search(table: Path) -> None:
    material = prepare_material(_config(table, hold_out=0.25))
    assert material.validation is not None
    training = {material.training.names[label] for label in material.training.labels}
    held = {material.validation.names[label] for label in material.validation.labels}
    assert len(held) == 2
    assert not training & held
    assert len(training | held) == 8
    assert sorted(set(material.training.labels)) == list(range(6))
    assert any("kept for validation: 12 of 48" in notice for notice in material.notices)
    again = prepare_material(_config(table, hold_out=0.25))
    assert again.validation is not None
    assert again.validation.paths == material.validation.paths


def test_images_are_kept_where_captions_count(table: Path) -> None:
    material = prepare_material(_config(table, "realign", hold_out=0.25))
    assert material.validation is not None
    assert len(material.validation) == 12
    assert not set(material.validation.paths) & set(material.training.paths)


def test_classes_of_one_image_are_kept_and_told() -> None:
    images = _images([*"aabbccdde", *"ee", "lonely"])
    material = prepare_material(_config(images, metric="last"))
    assert len(material.training) == 12
    assert material.validation is None
    (said,) = [notice for notice in material.notices if "one image" in notice]
    assert "lonely" in said
    held = prepare_material(_config(images, hold_out=0.4)).validation
    assert held is not None
    assert "lonely" not in {held.names[label] for label in held.labels}


def test_images_that_the_method_cannot_use_are_left_out_and_told() -> None:
    images = _images(["a", None, "b", "a"], [["x"], ["y"], [], ["z"]])
    by_class = prepare_material(_config(images, "mcip", metric="last"))
    assert [path.name for path in by_class.training.paths] == ["0.jpg", "2.jpg", "3.jpg"]
    assert "left out: 1 images without class" in by_class.notices
    assert any("none for 1" in notice for notice in by_class.notices)
    by_pair = prepare_material(_config(images, "realign", metric="last"))
    assert [path.name for path in by_pair.training.paths] == ["0.jpg", "1.jpg", "3.jpg"]
    assert "left out: 1 images without caption" in by_pair.notices


@pytest.mark.parametrize(
    ("method", "images", "options", "words"),
    [
        ("gpr", _images([None, None]), {}, "no image has one"),
        ("mcip", _images(["a", "b"]), {}, "tune captions"),
        ("mcip", _images(["a", "b"], [[], []]), {}, "tune captions"),
        ("realign", _images(["a", "b"]), {}, "column captions"),
        ("gpr", _images(["a", "a", "b", "b"]), {}, "too few to keep"),
        ("gpr", _images([*"aabbccdd"]), {"hold_out": 0.0}, "--hold-out is 0"),
        ("gpr", _images(["a", "a"]), {"metric": "last"}, "only one is left"),
        ("realign", _images([None] * 3, [["x"]] * 3), {}, "too few to keep"),
        ("gpr", _images([*"aabb"]), {"validation": _images([*"xyz"])}, "classes of two or more"),
        ("gpr", _images([*"aabb"]), {"validation": _images([*"xx"]), "metric": "text-recall"}, "with captions"),
    ],
)
def test_data_that_cannot_teach_is_refused(
    method: str, images: LabelledImages, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TuningError, match=words):
        prepare_material(_config(images, method, **options))


def test_captions_must_be_left_for_training_after_the_split() -> None:
    whole = [*"aabbccddee"]
    held = prepare_material(_config(_images(whole), "gpr", hold_out=0.4)).validation
    assert held is not None
    captions = [["x"] if Path(f"{number}.jpg") in held.paths else [] for number in range(len(whole))]
    with pytest.raises(TuningError, match="none of the 6 images left for training has a caption"):
        prepare_material(_config(_images(whole, captions), "mcip", hold_out=0.4))


def test_many_notices_are_cut() -> None:
    images = replace(_images([*"aabb"]), notices=tuple(f"notice {number}" for number in range(100)))
    notices = prepare_material(_config(images, metric="last")).notices
    assert len(notices) < 30
    assert "80 more notices of this kind" in notices


def test_labels_become_numbers_without_gaps(table: Path) -> None:
    images = read_table(table)
    images = images.where(~np.isin(images.labels, [0, 3]))
    training = prepare_material(_config(images, metric="last")).training
    assert training.names == [images.names[label] for label in (1, 2, 4, 5, 6, 7)]
    assert set(training.labels.tolist()) == set(range(6))


@pytest.mark.parametrize(
    "options", [{"method": "nothing"}, {"hold_out": 1.0}, {"max_unreadable": 2.0}, {"checkpoint": None}]
)
def test_configs_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(TuningError):
        TuneConfig(
            **{
                "method": "gpr",
                "model": "m",
                "checkpoint": Path("c"),
                "data": Path("d"),
                "output": Path("o"),
                **options,
            }
        )
