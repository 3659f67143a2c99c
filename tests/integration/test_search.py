"""`mcip-qdrant search`, against torch with the same weights where numbers are concerned."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import open_clip
import pytest
import torch
from cli_support import Done, points, run, run_all, vectors
from click.testing import CliRunner, Result
from conftest import Exported
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from mcip_qdrant import QueryEncoder
from mcip_qdrant.cli.search import search_command
from mcip_qdrant.keys import point_id

TEXTS = ("a cat looking at the camera", "brick wall", "die Erde aus dem All 🚀")


def _torch_images(clip: Exported, paths: list[Path]) -> np.ndarray[Any, Any]:
    transform = image_transform_v2(PreprocessCfg(size=64, **models.CLIP_PREPROCESS), is_train=False)
    pictures = []
    for path in paths:
        picture = ImageOps.exif_transpose(Image.open(path))
        white = Image.new("RGBA", picture.size, "white")
        pictures.append(transform(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")))
    with torch.inference_mode():
        return clip.model.encode_image(torch.stack(pictures), normalize=True).numpy()


def _torch_texts(clip: Exported, texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return clip.model.encode_text(open_clip.get_tokenizer("ViT-B-32")(list(texts)), normalize=True).numpy()


@pytest.fixture(scope="module")
def by_torch(clip: Exported, library: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What torch makes of every image of the library, by key."""
    paths = sorted(path for path in library.folder.rglob("*") if path.suffix.lower() in {".jpg", ".png"})
    found = _torch_images(clip, paths)
    return {f"photos/{path.relative_to(library.folder)}": vector for path, vector in zip(paths, found, strict=True)}


def _assert_ranked_as(hits: list[dict[str, Any]], scores: dict[str, float]) -> None:
    assert {hit["payload"]["key"] for hit in hits} == set(scores)
    in_our_order = np.array([scores[hit["payload"]["key"]] for hit in hits], dtype=np.float64)
    np.testing.assert_allclose([hit["score"] for hit in hits], in_our_order, atol=2e-6)
    best_of_the_rest = np.maximum.accumulate(in_our_order[::-1])[::-1]
    assert (in_our_order >= best_of_the_rest - 1e-6).all()
    assert np.ptp(in_our_order) > 1e-3  # there is an order to get wrong


def test_vectors_and_rankings_are_torchs(
    clip: Exported, library: Any, by_torch: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    stored = points(library.qdrant)
    assert set(stored) == set(by_torch)
    assert len(stored) == 43
    ours, theirs = vectors(stored.values()), np.stack([by_torch[key] for key in stored])
    assert (ours.astype(np.float64) * theirs).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(ours, theirs, atol=2e-5)

    asked = library.folder / "2020/deep/IMG_0001.jpg"
    queries = np.concatenate([_torch_texts(clip, TEXTS), _torch_images(clip, [asked])])
    flags = [("--text", text) for text in TEXTS] + [("--image", asked)]
    for query, pair in zip(
        queries, flags, strict=True
    ):  # one after the other: one process at a time may open the folder
        said = run("search", *library.where, *pair, "--limit", 1000, "--json", cwd=tmp_path)
        _assert_ranked_as(said.json, {key: float(vector @ query) for key, vector in by_torch.items()})
    assert said.json[0]["payload"]["key"] == "photos/2020/deep/IMG_0001.jpg"


def test_a_picture_finds_itself_and_its_copies(library: Any, tmp_path: Path) -> None:
    original = library.folder / "photo-0003.jpg"
    picture = Image.open(original)
    smaller = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)
    smaller.save(tmp_path / "copy.jpg", quality=60)
    (tmp_path / "-odd.webp").write_bytes(b"")
    picture.save(tmp_path / "-odd.webp", quality=70)

    said = run("search", *library.where, "--image", original, "--limit", 3, "--json", cwd=tmp_path)
    hits = said.json
    assert [sorted(hit) for hit in hits] == [["id", "payload", "score", "uri"]] * 3
    assert hits[0]["id"] == point_id("photos/photo-0003.jpg")
    assert hits[0]["uri"] == f"file://{original}"
    assert hits[0]["payload"]["sha256"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert hits[0]["score"] > hits[1]["score"] >= hits[2]["score"]

    for name in ("copy.jpg", "-odd.webp"):
        said = run("search", *library.where, "--image", name, "--limit", 2, "--sheet", f"{name}.png", cwd=tmp_path)
        lines = [line.split("  ") for line in said.out.splitlines()]
        assert [len(line) for line in lines] == [3, 3]
        assert lines[0][1:] == [point_id("photos/photo-0003.jpg"), f"file://{original}"]
        assert float(lines[0][0]) > 0.9
        assert "contact sheet: " in said.err
    with Image.open(tmp_path / "copy.jpg.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 450  # query and two hits: two tiles wide, two high
        assert sheet.height > 450
        assert len(sheet.convert("RGB").getcolors(1 << 20) or ()) > 1000  # photographs, not empty tiles


def test_like_leaves_the_image_itself_out(library: Any, tmp_path: Path) -> None:
    key = "photos/photo-0005.jpg"
    by_key, by_id, by_image = (
        run("search", *library.where, *query, "--json", cwd=tmp_path).json
        for query in (
            ("--like", key, "--limit", 42),
            ("--like", point_id(key).upper(), "--limit", 42),
            ("--image", library.folder / "photo-0005.jpg", "--limit", 43),
        )
    )
    assert len(by_key) == 42
    assert by_key == by_id
    assert by_image[0]["id"] == point_id(key)
    assert [hit["id"] for hit in by_key] == [hit["id"] for hit in by_image[1:]]
    unknown = run("search", *library.where, "--like", "photos/none.jpg", cwd=tmp_path, expect=1)
    assert "no image with key or id 'photos/none.jpg'" in unknown.err


def test_mixes_filters_examples_and_diversity(library: Any, tmp_path: Path) -> None:
    def said(*arguments: object) -> Result:
        flags = [*library.where, *arguments, "--device", "cpu"]
        # In this process: twenty new ones would take long.
        return CliRunner().invoke(search_command, [str(one) for one in flags])

    def keys(*arguments: object) -> list[str]:
        result = said(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return [hit["payload"]["key"] for hit in json.loads(result.stdout)]

    one, other = (library.folder / f"photo-{number:04}.jpg" for number in (3, 7))
    stored = points(library.qdrant)
    ours = dict(zip(stored, vectors(stored.values()), strict=True))
    words = QueryEncoder.open(library.bundle, device="cpu").text("@home")
    wanted = ours["photos/photo-0003.jpg"] - 0.5 * ours["photos/photo-0007.jpg"] + 0.2 * words
    mixed = keys("--mix", f"@{one}", 1, "--mix", f"@{other}", -0.5, "--mix", "@@home", 0.2, "--limit", 43)
    assert mixed == sorted(ours, key=lambda key: -float(ours[key] @ wanted))
    assert keys("--image", one, "--filter", "year=2019") == ["photos/2019/deep/IMG_0001.jpg"]
    assert keys("--image", one, "--filter", "tag=007", "--filter", "year=2019") == ["photos/2019/deep/IMG_0001.jpg"]
    wide = '{"must": [{"key": "width", "range": {"lt": 81}}, {"key": "format", "match": {"value": "JPEG"}}]}'
    assert keys("--image", one, "--filter", wide) == ["photos/turned.jpg"]
    near = keys("--like", "photos/photo-0003.jpg", "--like", "photos/photo-0007.jpg", "--limit", 41)
    assert not {"photos/photo-0003.jpg", "photos/photo-0007.jpg"} & set(near)
    far = keys("--like", "photos/photo-0003.jpg", "--unlike", near[0], "--limit", 41)
    assert near[0] not in far
    plain, spread = (keys("--image", one, "--limit", 8, *flags) for flags in ((), ("--diverse",)))
    assert plain[0] == spread[0] == "photos/photo-0003.jpg"
    assert plain != spread
    assert keys("--image", one, "--limit", 3, "--offset", 5) == keys("--image", one, "--limit", 8)[5:]

    assert "no image passes the filter" in said("--text", "a", "--filter", "nowhere=1").stderr
    assert "1 of 1 texts cut: only the first 77 tokens" in said("--text", "a word " * 100, "--limit", 1).stderr
    for flags in (("--filter", "year"), ("--filter", "{"), ("--filter", '{"must": 3}'), ("--mix", "a", "b")):
        assert said("--text", "a", *flags).exit_code == 2
    cancelled = run("search", *library.where, "--mix", "a", 1, "--mix", "a", -1, cwd=tmp_path, expect=1)
    assert "cancel each other out" in cancelled.err


def test_searches_that_make_no_sense(library: Any, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    where = library.where

    def refused(expect: int, *arguments: object) -> Done:
        said = run("search", *arguments, cwd=tmp_path, expect=expect)
        assert said.out == ""
        return said

    assert "exactly one of --text, --image, --mix and --like" in refused(2, *where).err
    assert "exactly one of" in refused(2, *where, "--text", "a", "--like", "b").err
    assert "--limit" in refused(2, *where, "--text", "a", "--limit", 0).err
    assert "--bundle" in refused(2, "--text", "a").err
    assert "must not be empty" in refused(1, *where, "--text", "  ").err
    assert "not valid text" in refused(1, *where, "--text", b"caf\xe9").err
    assert "page.jpg" in refused(1, *where, "--image", "page.jpg").err
    assert "none.jpg: no such file" in refused(1, *where, "--image", "none.jpg").err
    missing = refused(1, *where, "--text", "a", "--collection", "other")
    assert "no collection 'other'" in missing.err
    assert "mcip-qdrant ingest FOLDER --collection other" in missing.err
    # A mistyped path is told, not made.
    assert "no such folder" in refused(1, "--bundle", library.bundle, "--qdrant", "qdrnat", "--text", "a").err
    assert not (tmp_path / "qdrnat").exists()
    assert (
        "--sheet x/y.png: cannot be written"
        in run("search", *where, "--text", "a", "--sheet", "x/y.png", cwd=tmp_path, expect=1).err
    )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_search_the_same_space(library: Any, tmp_path: Path, precision: str) -> None:
    image = ("--image", library.folder / "photo-0011.jpg")
    hits = run("search", *library.where, *image, "--precision", precision, "--limit", 1, "--json", cwd=tmp_path).json
    assert hits[0]["payload"]["key"] == "photos/photo-0011.jpg"
    assert 0.95 < hits[0]["score"] < 1.000001


def test_settings_from_the_environment(library: Any, tmp_path: Path) -> None:
    env = {
        "MCIP_QDRANT_BUNDLE": str(library.bundle),
        "MCIP_QDRANT_URL": str(library.qdrant),
        "MCIP_QDRANT_COLLECTION": "images",
        "MCIP_QDRANT_DEVICE": "cpu",
    }
    # A flag wins over the environment.
    flags = ("--limit", 2, "--collection", "images")
    said = run("search", "--text", "a", *flags, cwd=tmp_path, env={**env, "MCIP_QDRANT_COLLECTION": "another"})
    assert len(said.out.splitlines()) == 2
    assert said.err == ""  # no `auto`, so nothing to say about the device
    said = run("search", "--text", "a", cwd=tmp_path, env={**env, "MCIP_QDRANT_COLLECTION": "other"}, expect=1)
    assert "'other'" in said.err
    cuda = run("search", "--text", "a", cwd=tmp_path, env={**env, "MCIP_QDRANT_DEVICE": "cuda:1"}, expect=4)
    assert "device cuda:1 was asked for" in cuda.err


def test_each_query_loads_its_own_graph_only(library: Any, tmp_path: Path) -> None:
    """A graph of the right size whose bytes are noise cannot be loaded: a search that works did not try."""
    text_only, image_only = tmp_path / "text-only", tmp_path / "image-only"
    for bundle, spoilt in ((text_only, "visual"), (image_only, "textual")):
        shutil.copytree(library.bundle, bundle)
        for graph in bundle.glob(f"{spoilt}*.onnx"):
            graph.write_bytes(os.urandom(graph.stat().st_size))
    where = ("--qdrant", library.qdrant)
    image = ("--image", library.folder / "photo-0000.jpg")
    assert len(run("search", "--bundle", text_only, *where, "--text", "a", "--json", cwd=tmp_path).json) == 10
    assert len(run("search", "--bundle", image_only, *where, *image, "--json", cwd=tmp_path).json) == 10
    assert "visual.onnx" in run("search", "--bundle", text_only, *where, *image, cwd=tmp_path, expect=4).err
    assert "textual.onnx" in run("search", "--bundle", image_only, *where, "--text", "a", cwd=tmp_path, expect=4).err


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "open_clip", "transformers", "celery", "onnx", "timm", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r} here", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_without_torch(library: Any, tmp_path: Path) -> None:
    (tmp_path / "block").mkdir()
    (tmp_path / "block/sitecustomize.py").write_text(BLOCKER)
    env = {"PYTHONPATH": str(tmp_path / "block")}
    exported = run(
        "export", "--model", "ViT-B-32", "--checkpoint", "x.pth", "--output", "b", cwd=tmp_path, env=env, expect=4
    )
    assert "is not installed" in exported.err  # the blocker works
    assert 'pip install "mcip-qdrant[cpu,export]"' in exported.err
    shutil.copytree(library.folder, tmp_path / "photos")
    flags = ("--bundle", library.bundle)
    first = run("ingest", "photos", *flags, "--json", cwd=tmp_path, env=env).json
    assert first["embedded"] == 43
    for query in (("--text", "a cat"), ("--image", "photos/photo-0001.jpg")):
        assert len(run("search", *flags, *query, "--json", cwd=tmp_path, env=env).json) == 10
    run_all([("verify", library.bundle), ("inspect", library.bundle)], cwd=tmp_path, env=env)
