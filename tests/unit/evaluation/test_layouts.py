"""Each benchmark's own layout: labels, order, halves and splits as published, and lists that may not lead elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.layouts import (
    GPR1200_SUBSETS,
    gpr1200_subsets,
    read_aircraft,
    read_cars,
    read_cub,
    read_gpr1200,
    read_instre,
    read_karpathy,
    read_revisited,
    read_sop,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(found: Any) -> list[tuple[str, str]]:
    return [(path.name, found.names[label]) for path, label in zip(found.paths, found.labels, strict=True)]


def test_gpr1200_is_sorted_by_number_and_named_by_its_table(tmp_path: Path) -> None:
    touch(tmp_path / "images", "10_a.jpg", "9_b_2.jpg", "9_a_1.jpg", "100_3.JPG")
    (tmp_path / "GPR1200_categoryNumber_to_text.json").write_text('{"9": "a tower", "10": "a moth"}')
    found = read_gpr1200(tmp_path)
    assert names(found) == [
        ("9_a_1.jpg", "a tower"),
        ("9_b_2.jpg", "a tower"),
        ("10_a.jpg", "a moth"),
        ("100_3.JPG", "100"),
    ]
    assert found.labels.tolist() == [0, 0, 1, 2]
    assert "not the whole GPR1200" in found.notices[-1]
    assert gpr1200_subsets(found) == {}


def test_the_whole_gpr1200_has_six_subsets(tmp_path: Path) -> None:
    for category in range(1200):
        touch(tmp_path, *(f"{category}_{number}.jpg" for number in range(10)))
    found = read_gpr1200(tmp_path)
    assert found.notices == ()
    subsets = gpr1200_subsets(found)
    assert list(subsets) == list(GPR1200_SUBSETS)
    assert [int(chosen.sum()) for chosen in subsets.values()] == [2000] * 6
    assert {path.name.split("_")[0] for path, is_in in zip(found.paths, subsets["INSTRE"], strict=True) if is_in} == {
        str(category) for category in range(600, 800)
    }
    (tmp_path / "7_3.jpg").unlink()
    smaller = read_gpr1200(tmp_path)
    assert "11999 images of 1200 categories" in smaller.notices[0]
    assert gpr1200_subsets(smaller) == {}, "the notice says that they are left out"


def test_instre_takes_the_parent_folder(tmp_path: Path) -> None:
    touch(
        tmp_path, "INSTRE-S1/01a_book/1.jpg", "INSTRE-S1/01a_book/1.txt", "INSTRE-M/01_x/9.jpg", "INSTRE-S2/02b/5.jpg"
    )
    assert names(read_instre(tmp_path)) == [("9.jpg", "01_x"), ("1.jpg", "01a_book"), ("5.jpg", "02b")]
    touch(tmp_path, "1.jpg")
    with pytest.raises(SourceError, match="in a folder that names its class"):
        read_instre(tmp_path)


@pytest.mark.parametrize("below", ["CUB_200_2011/images", "images", "."])
def test_cub_is_the_second_hundred(tmp_path: Path, below: str) -> None:
    touch(tmp_path / below, *(f"{number:03}.Bird/{number}.jpg" for number in range(1, 201)), "100.Bird/x.jpg")
    found = read_cub(tmp_path)
    assert len(found) == 100
    assert names(found)[0] == ("101.jpg", "101.Bird")
    assert found.labels.tolist() == list(range(100))
    assert len(found.names) == 100


def test_cub_needs_every_class(tmp_path: Path) -> None:
    touch(tmp_path, "001.Bird/1.jpg")
    with pytest.raises(SourceError, match="1 classes; the test half is defined by the order of all 200"):
        read_cub(tmp_path)


def test_cars_by_annotations_and_by_folders(tmp_path: Path) -> None:
    rows = [(f"car_ims/{number:06}.jpg", 1 + number % 196, number % 2) for number in range(392)]
    table = np.array(rows, dtype=[("relative_im_path", object), ("class", object), ("test", object)])
    (tmp_path / "mat").mkdir()
    scipy.io.savemat(tmp_path / "mat" / "cars_annos.mat", {"annotations": table})
    found = read_cars(tmp_path / "mat")
    assert len(found) == 196
    assert found.counts().tolist() == [2] * 98
    assert names(found)[0] == ("000098.jpg", "099")
    touch(tmp_path / "folders", *(f"car {number:03}/{number}.jpg" for number in range(196)))
    assert [name for name, _ in names(read_cars(tmp_path / "folders"))] == [
        f"{number}.jpg" for number in range(98, 196)
    ]


def test_cars_refuses_other_tables(tmp_path: Path) -> None:
    (tmp_path / "cars_annos.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(SourceError, match="not Cars196's annotations"):
        read_cars(tmp_path)
    rows = np.array([("../x.jpg", 1), ("b.jpg", 2)], dtype=[("relative_im_path", object), ("class", object)])
    scipy.io.savemat(tmp_path / "cars_annos.mat", {"annotations": rows})
    with pytest.raises(SourceError, match="leads outside"):
        read_cars(tmp_path)


def test_sop_reads_its_test_list(tmp_path: Path) -> None:
    folder = tmp_path / "Stanford_Online_Products"
    folder.mkdir()
    (folder / "Ebay_test.txt").write_text(
        "image_id class_id super_class_id path\n1 11319 1 bicycle_final/1_0.JPG\n2 11319 1 bicycle_final/1_1.JPG\n3 9 1 a/2.JPG\n"
    )
    found = read_sop(tmp_path)
    assert found.paths[0] == folder / "bicycle_final/1_0.JPG"
    assert found.labels.tolist() == [1, 1, 0]
    assert read_sop(folder).labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "line 2 is not"),
        ("1 x 3 a.jpg", "line 2 is not"),
        ("1 2 3 ../a.jpg", "outside"),
        ("1 2 3 /a.jpg", "outside"),
    ],
)
def test_sop_refusals(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "Ebay_test.txt").write_text(f"image_id class_id super_class_id path\n{line}\n")
    with pytest.raises(SourceError, match=message):
        read_sop(tmp_path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_sop(tmp_path / "gone")


def test_aircraft_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "images_variant_test.txt").write_text("0062765 Boeing 737-200\n1 A 320\n2 Boeing 737-200\n")
    found = read_aircraft(tmp_path, "test")
    assert names(found) == [("0062765.jpg", "Boeing 737-200"), ("1.jpg", "A 320"), ("2.jpg", "Boeing 737-200")]
    assert found.paths[0] == folder / "images" / "0062765.jpg"
    with pytest.raises(SourceError, match="cannot be read"):
        read_aircraft(tmp_path, "train")
    (folder / "images_variant_train.txt").write_text("0062765\n")
    with pytest.raises(SourceError, match="line 1 is not"):
        read_aircraft(tmp_path, "train")


def test_revisited(tmp_path: Path) -> None:
    gnd = {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{"bbx": [0, 0, 1, 1], "easy": [1], "hard": [], "junk": [0]}]}
    (tmp_path / "gnd_roxford5k.json").write_text(json.dumps(gnd))
    found = read_revisited(tmp_path)
    assert found.queries == [tmp_path / "jpg" / "q.jpg"]
    assert found.database == [tmp_path / "jpg" / "a.jpg", tmp_path / "jpg" / "b.jpg"]
    assert found.answers[0].easy.tolist() == [1]
    (tmp_path / "gnd_rparis6k.json").write_text(json.dumps(gnd))
    with pytest.raises(SourceError, match="found 2"):
        read_revisited(tmp_path)
    with pytest.raises(SourceError, match="found 0"):
        read_revisited(tmp_path / "jpg")


KARPATHY = {
    "images": [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "no"}]},
        {
            "filename": "2.jpg",
            "split": "test",
            "sentences": [{"raw": f" text {n} "} for n in range(7)] + [{"raw": " "}],
        },
        {"filename": "3.jpg", "filepath": "val2014", "split": "test", "sentences": []},
    ]
}


def test_karpathy(tmp_path: Path) -> None:
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY))
    found = read_karpathy(path, None)
    assert found.paths == [tmp_path / "2.jpg", tmp_path / "val2014" / "3.jpg"]
    assert found.captions == [[f"text {n}" for n in range(5)], []]
    assert len((read_karpathy(path, tmp_path / "x", captions=0).captions or [])[0]) == 7
    assert read_karpathy(path, tmp_path / "x", split="train").paths == [tmp_path / "x" / "1.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "not in Karpathy's layout"),
        ('{"images": [{"filename": "1.jpg"}]}', "not in Karpathy's layout"),
        ('{"images": []}', "no image of the split"),
        ('{"images": [{"filename": "../1.jpg", "split": "test", "sentences": []}]}', "outside"),
        ('{"images": [{"filename": "1.jpg", "filepath": "/etc", "split": "test", "sentences": []}]}', "outside"),
    ],
)
def test_karpathy_refusals(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_karpathy(tmp_path / "d.json", None)


def test_gpr1200_refusals(tmp_path: Path) -> None:
    touch(tmp_path, "tower.jpg")
    with pytest.raises(SourceError, match="named CATEGORY_name.jpg"):
        read_gpr1200(tmp_path)
    (tmp_path / "tower.jpg").unlink()
    (tmp_path / "GPR1200_categoryNumber_to_text.json").write_text("[]")
    with pytest.raises(SourceError, match="an object of category numbers"):
        read_gpr1200(tmp_path)
