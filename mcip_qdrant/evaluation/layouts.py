"""Readers of benchmark folders as their authors publish them. No picture is opened, nothing is downloaded.

Where a folder is not the whole benchmark, a notice says so, and figures on it are not comparable with published ones.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcip_qdrant.errors import MissingExtraError, SourceError
from mcip_qdrant.evaluation.datasets import LabelledImages, class_of_folder, labelled, list_images, read_folder
from mcip_qdrant.evaluation.gnd import read_gnd
from mcip_qdrant.evaluation.scores import Junk

GPR1200_SUBSETS: Final = ("GLDv2", "iNaturalist", "ImageNet-Sketch", "INSTRE", "SOP", "faces")
_GPR1200_BLOCK: Final = 200
_GPR1200_IMAGES: Final = 12_000
_CATEGORY: Final = re.compile(r"(\d{1,9})_", re.ASCII)


@dataclass(frozen=True, slots=True)
class RevisitedImages:
    """Revisited Oxford or Paris: query pictures, database pictures, and one answer for each query."""

    queries: list[Path]
    database: list[Path]
    answers: list[Junk]


def read_gpr1200(root: Path) -> LabelledImages:
    """GPR1200 (https://github.com/Visual-Computing/GPR1200): a flat folder `images/` of `{category id}_{name}.jpg`.

    The class is the number before the first `_`; classes are numbered by it. `GPR1200_categoryNumber_to_text.json`, if it
    lies beside `images/`, names them.

    Raises:
        SourceError: no such folder, or a name without a category id.
    """
    folder = root / "images" if (root / "images").is_dir() else root
    paths, notices = list_images(folder)
    texts = _category_texts(root / "GPR1200_categoryNumber_to_text.json")
    by_category: list[tuple[int, Path]] = []
    for path in paths:
        match = _CATEGORY.match(path.name)
        if match is None:
            raise SourceError(
                f"{path}: a GPR1200 image is named CATEGORY_name.jpg, with the category's number in front"
            )
        by_category.append((int(match[1]), path))
    by_category.sort(key=lambda pair: pair[0])
    categories = sorted({category for category, _ in by_category})
    number = {category: index for index, category in enumerate(categories)}
    if not _whole_gpr1200(len(paths), len(categories)):
        notices.append(
            f"{len(paths)} images of {len(categories)} categories: not the whole GPR1200 (12000 of 1200), so its subsets "
            "are left out and the figure is not comparable with published ones"
        )
    return LabelledImages(
        [path for _, path in by_category],
        np.array([number[category] for category, _ in by_category], dtype=np.int64),
        [texts.get(str(category), str(category)) for category in categories],
        notices=tuple(notices),
    )


def gpr1200_subsets(images: LabelledImages) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which images (bool `[N]`) belong to each of the six sources: blocks of 200 categories in order. Empty unless complete."""
    if not _whole_gpr1200(len(images), len(images.names)):
        return {}
    block = images.labels // _GPR1200_BLOCK
    return {name: block == index for index, name in enumerate(GPR1200_SUBSETS)}


def _whole_gpr1200(images: int, categories: int) -> bool:
    return categories == len(GPR1200_SUBSETS) * _GPR1200_BLOCK and images == _GPR1200_IMAGES


def _category_texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    raw = _json(path)
    if not isinstance(raw, dict):
        raise SourceError(f"{path}: expected an object of category numbers and texts")
    return {str(number): str(text) for number, text in raw.items()}


def read_instre(root: Path) -> LabelledImages:
    """INSTRE: every image below the root, with the name of its parent folder as class (`INSTRE-S1/01a_…/1.jpg`).

    Raises:
        SourceError: no such folder, or an image directly in the root.
    """
    paths, notices = list_images(root)
    base = root.absolute()
    if beside := next((path for path in paths if path.parent == base), None):
        raise SourceError(f"{beside}: an INSTRE image lies in a folder that names its class")
    return labelled([(path, class_of_folder(path.parent.name)) for path in paths], notices=notices)


def read_cub(root: Path) -> LabelledImages:
    """CUB-200-2011: `images/001.Black_footed_Albatross/*.jpg`; the test half is classes 100 to 199 in ImageFolder's order.

    Raises:
        SourceError: not 200 class folders.
    """
    folder = next((path for path in (root / "CUB_200_2011" / "images", root / "images") if path.is_dir()), root)
    return _second_half(read_folder(folder), folder, classes=200, first=100)


def read_cars(root: Path) -> LabelledImages:
    """Cars196: `car_ims/` with `cars_annos.mat`, or 196 class folders; the test half is the last 98 classes.

    Raises:
        SourceError: neither is there, or classes are missing.
        MissingExtraError: `cars_annos.mat` is there and SciPy is not installed.
    """
    if (root / "cars_annos.mat").is_file():
        return _second_half(_cars_from_annotations(root / "cars_annos.mat"), root, classes=196, first=98)
    return _second_half(read_folder(root), root, classes=196, first=98)


def _cars_from_annotations(path: Path) -> LabelledImages:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f'{path} needs SciPy to be read: pip install "mcip-qdrant[eval]"') from exc
    try:
        table = loadmat(path, squeeze_me=True, variable_names=["annotations"])["annotations"]
        rows = [(_below(path.parent, str(row["relative_im_path"])), f"{int(row['class']):03}") for row in table]
    except SourceError:
        raise
    except Exception as exc:  # SciPy fails in many ways on a damaged file
        raise SourceError(f"{path}: not Cars196's annotations ({type(exc).__name__}: {exc})") from exc
    return labelled(rows)


def _second_half(images: LabelledImages, where: Path, *, classes: int, first: int) -> LabelledImages:
    if len(images.names) != classes:
        raise SourceError(
            f"{where}: {len(images.names)} classes; the test half is defined by the order of all {classes}. "
            "For other folders of classes use `eval classes`"
        )
    half = images.where(images.labels >= first)
    return replace(half, labels=half.labels - first, names=half.names[first:])


def read_sop(root: Path) -> LabelledImages:
    """Stanford Online Products: the images of `Ebay_test.txt` (image_id class_id super_class_id path).

    Raises:
        SourceError: no such list, or a line of another form.
    """
    path = next(
        (path for path in (root / "Stanford_Online_Products" / "Ebay_test.txt",) if path.is_file()),
        root / "Ebay_test.txt",
    )
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split()
        if number == 1 and cells[:1] == ["image_id"]:
            continue
        if len(cells) != 4 or not cells[1].isdecimal():
            raise SourceError(f"{path}: line {number} is not 'image_id class_id super_class_id path'")
        rows.append((_below(path.parent, cells[3]), cells[1].zfill(6)))
    return labelled(rows)


def read_aircraft(root: Path, split: str) -> LabelledImages:
    """FGVC-Aircraft: the images of `data/images_variant_{split}.txt` (image_id variant name), in `data/images/`.

    Raises:
        SourceError: no such list, or a line of another form.
    """
    folder = next((path for path in (root / "fgvc-aircraft-2013b" / "data", root / "data") if path.is_dir()), root)
    path = folder / f"images_variant_{split}.txt"
    rows: list[tuple[Path, str | None]] = []
    for number, line in enumerate(_lines(path), start=1):
        image, _, variant = line.partition(" ")
        if not variant.strip():
            raise SourceError(f"{path}: line {number} is not 'image_id variant'")
        rows.append((_below(folder / "images", f"{image}.jpg"), variant.strip()))
    return labelled(rows)


def read_revisited(root: Path) -> RevisitedImages:
    """Revisited Oxford or Paris: `gnd_*.json` or `gnd_*.pkl` and `jpg/NAME.jpg`. Query pictures are used whole.

    Raises:
        SourceError: no ground truth there, several, or one that is refused.
    """
    found = sorted(root.glob("gnd_*.json")) or sorted(root.glob("gnd_*.pkl"))
    if len(found) != 1:
        raise SourceError(f"{root}: expected one gnd_NAME.json or gnd_NAME.pkl, found {len(found)}")
    gnd = read_gnd(found[0])
    folder = root / "jpg"
    return RevisitedImages(
        [folder / f"{name}.jpg" for name in gnd["qimlist"]],
        [folder / f"{name}.jpg" for name in gnd["imlist"]],
        [Junk(**answer) for answer in gnd["gnd"]],
    )


def read_karpathy(path: Path, images: Path | None, *, split: str = "test", captions: int = 5) -> LabelledImages:
    """Flickr30k or MS-COCO in Karpathy's JSON: `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`.

    Args:
        images: folder of the pictures; default: the folder of the JSON file.
        split: which images to take.
        captions: at most this many of each image, in order (a few COCO images have six or seven); 0 takes all.

    Raises:
        SourceError: unreadable, of another form, or no image in the split.
    """
    raw = _json(path)
    folder = path.parent if images is None else images
    paths: list[Path] = []
    texts: list[list[str]] = []
    try:
        for item in raw["images"]:
            if item["split"] != split:
                continue
            said = [sentence["raw"].strip() for sentence in item["sentences"]]
            texts.append([text for text in said if text][: captions or None])
            paths.append(_below(folder, str(Path(item.get("filepath") or "") / item["filename"])))
    except (KeyError, TypeError, AttributeError) as exc:
        raise SourceError(f"{path}: not in Karpathy's layout ({type(exc).__name__}: {exc})") from exc
    if not paths:
        raise SourceError(f"{path}: no image of the split {split!r}")
    return labelled([(where, None) for where in paths], captions=texts)


def _below(folder: Path, name: str) -> Path:
    """A file that a list names; lists come from others, so they may not name files elsewhere."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise SourceError(f"{name!r} leads outside of {folder}")
    return folder / relative


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise SourceError(f"{path} cannot be read: {exc}") from exc


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise SourceError(f"{path} cannot be read: {exc}") from exc
