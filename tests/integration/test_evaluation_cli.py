"""`mcip-qdrant eval` on every layout, with a real bundle, a real checkpoint and a real index; figures recomputed elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Exported
from evaluation_support import write_classes
from qdrant_client import QdrantClient, models
from services import QdrantService, qdrant_server
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from mcip_qdrant import QueryEncoder
from mcip_qdrant.cli.main import cli
from mcip_qdrant.errors import InvalidQueryError, McipError, MissingExtraError, SourceError, SpaceMismatchError
from mcip_qdrant.keys import point_id


@dataclass(frozen=True)
class Said:
    """What one evaluation answered."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    def value(self, name: str, model: int = 0) -> float:
        figure = next(figure for figure in self.report["figures"] if figure["name"] == name)
        return float(figure["estimates"][model]["value"])


def evaluate(*arguments: object) -> Said:
    """Run `mcip-qdrant eval …` in this process."""
    result = CliRunner().invoke(cli, ["eval", *map(str, arguments)], standalone_mode=False, catch_exceptions=False)
    return Said(result.return_value, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "data", 6, 5)


@pytest.fixture(scope="module")
def vectors(clip: Exported, classes: Path) -> tuple[list[Path], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Paths, vectors by the query side (float64), and labels: nothing of the evaluation takes part."""
    paths = sorted(classes.rglob("*.jpg"))
    found = QueryEncoder.open(clip.folder).images(list(paths)).astype(np.float64)
    return paths, found, np.array([int(path.parent.name[-1]) for path in paths])


@pytest.fixture
def bundle(clip: Exported, tmp_path: Path) -> tuple[object, ...]:
    return ("--bundle", clip.folder, "--cache", tmp_path / "cache", "--json")


def test_classes_gives_scikit_learns_figure(bundle: tuple[object, ...], classes: Path, vectors: Any) -> None:
    _, found, labels = vectors
    exact = found @ found.T
    outside = [
        average_precision_score(np.delete(labels == labels[i], i), np.delete(exact[i], i)) for i in range(len(labels))
    ]
    np.fill_diagonal(exact, 2)
    inside = [average_precision_score(labels == labels[i], exact[i]) for i in range(len(labels))]
    said = evaluate("classes", classes, *bundle)
    assert said.code == 0
    assert said.value("mAP") == pytest.approx(np.mean(outside), abs=1e-4)
    assert said.report["preparations"][0].startswith("open_clip")
    assert evaluate("classes", classes, "--query-in", *bundle).value("mAP") == pytest.approx(np.mean(inside), abs=1e-4)


def test_knn_gives_scikit_learns_figure(
    bundle: tuple[object, ...], tmp_path: Path, clip: Exported, classes: Path
) -> None:
    paths = sorted(classes.rglob("*.jpg"))
    for path in paths:
        split = tmp_path / ("test" if path.stem in {"3", "4"} else "train") / path.parent.name
        split.mkdir(parents=True, exist_ok=True)
        (split / path.name).symlink_to(path)
    encoder = QueryEncoder.open(clip.folder)
    train, test = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("train", "test"))
    peer = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    peer.fit(encoder.images(list(train)), [path.parent.name for path in train])
    expected = peer.score(encoder.images(list(test)), [path.parent.name for path in test])
    said = evaluate("knn", tmp_path / "train", tmp_path / "test", "--neighbours", 5, *bundle)
    assert said.value("accuracy") == pytest.approx(expected)
    assert said.report["data"]["training images"] == len(train)


def test_captions_gives_a_brute_force_figure(
    bundle: tuple[object, ...], tmp_path: Path, clip: Exported, vectors: Any
) -> None:
    paths, found, labels = vectors
    texts = [[f"photo {place} of class {label}", f"a {label} {'very ' * place}"] for place, label in enumerate(labels)]
    rows = [{"image": str(path), "captions": said} for path, said in zip(paths, texts, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flat = [text for said in texts for text in said]
    exact = QueryEncoder.open(clip.folder).texts(flat).astype(np.float64) @ found.T
    said = evaluate("captions", tmp_path / "t.jsonl", "--k", "1,10", "--html", tmp_path / "page.html", *bundle)
    for k in (1, 10):
        by_text = [text // 2 in np.argsort(-exact[text])[:k] for text in range(len(flat))]
        by_image = [(np.argsort(-exact[:, image])[:k] // 2 == image).any() for image in range(len(paths))]
        assert said.value(f"text-to-image R@{k}") == pytest.approx(np.mean(by_text))
        assert said.value(f"image-to-text R@{k}") == pytest.approx(np.mean(by_image))
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()
    karpathy = [
        {
            "filename": path.name,
            "filepath": path.parent.name,
            "split": "test",
            "sentences": [{"raw": text} for text in own],
        }
        for path, own in zip(paths, texts, strict=True)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": karpathy}))
    for command in ("flickr30k", "coco"):
        same = evaluate(command, tmp_path / "dataset.json", "--images", paths[0].parent.parent, *bundle)
        assert same.value("text-to-image R@10") == said.value("text-to-image R@10")
        assert "not the whole benchmark" in same.report["notices"][0]


def test_zero_shot(bundle: tuple[object, ...], tmp_path: Path, clip: Exported, classes: Path, vectors: Any) -> None:
    _, found, labels = vectors
    names = {
        f"class-{number}": word for number, word in enumerate(["moon", "cat", "brick", "coffee", "rocket", "text"])
    }
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "templates.txt").write_text("a photo of a {}.\nthe {} !\n")
    texts = QueryEncoder.open(clip.folder).texts(
        [template.format(word) for word in names.values() for template in ("a photo of a {}.", "the {} !")]
    )
    mean = texts.astype(np.float64).reshape(6, 2, -1).mean(axis=1)
    expected = ((found @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T).argmax(axis=1) == labels).mean()
    options = ("--class-names", tmp_path / "names.json", "--templates", tmp_path / "templates.txt")
    assert evaluate("zero-shot", classes, *options, *bundle).value("accuracy") == pytest.approx(expected)
    assert (
        "80 prompt templates" in evaluate("zero-shot", classes, "--templates", "imagenet", *bundle).report["protocol"]
    )


def test_recall_and_the_benchmarks_with_a_layout_of_their_own(
    bundle: tuple[object, ...], tmp_path: Path, vectors: Any
) -> None:
    paths, found, labels = vectors
    exact = found @ found.T
    np.fill_diagonal(exact, -2)
    nearest = (labels[exact.argmax(axis=1)] == labels).mean()

    def lay(root: Path, name: str, source: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(source)

    lists = ["image_id class_id super_class_id path"]
    for place, (path, label) in enumerate(zip(paths, labels, strict=True)):
        lay(tmp_path / "gpr", f"images/{label}_{place}.jpg", path)
        lay(tmp_path / "instre", f"INSTRE-S{label % 2}/{label}_x/{place}.jpg", path)
        lay(tmp_path / "sop", f"a_final/{place}.JPG", path)
        lay(tmp_path / "cub", f"images/{101 + label:03}.Bird/{place}.jpg", path)
        lay(tmp_path / "cars", f"car {98 + label:03}/{place}.jpg", path)
        lay(tmp_path / "air" / "data" / "images", f"{place}.jpg", path)
        lay(tmp_path / "rox" / "jpg", f"im_{place}.jpg", path)
        lists.append(f"{place} {label} 1 a_final/{place}.JPG")
    (tmp_path / "sop" / "Ebay_test.txt").write_text("\n".join(lists))
    for number in range(200):
        (tmp_path / "cub" / "images" / f"{number + 1:03}.Bird").mkdir(exist_ok=True)
        if number < 196:
            (tmp_path / "cars" / f"car {number:03}").mkdir(exist_ok=True)
    for split, chosen in (("train", range(0, len(paths), 2)), ("test", range(1, len(paths), 2))):
        lines = [f"{place} variant {labels[place]}" for place in chosen]
        (tmp_path / "air" / "data" / f"images_variant_{split}.txt").write_text("\n".join(lines))
    answer = {"easy": [1, 2], "hard": [3, 4], "junk": [0], "bbx": [0, 0, 1, 1]}
    gnd = {"imlist": [f"im_{place}" for place in range(len(paths))], "qimlist": ["im_0"], "gnd": [answer]}
    (tmp_path / "rox" / "gnd_x.json").write_text(json.dumps(gnd))

    whole = evaluate("classes", tmp_path / "instre", "--query-in", *bundle)
    assert evaluate("gpr1200", tmp_path / "gpr", *bundle).value("mAP") == pytest.approx(
        evaluate("instre", tmp_path / "instre", *bundle).value("mAP"), abs=1e-9
    )
    assert whole.value("mAP") != evaluate("instre", tmp_path / "instre", *bundle).value("mAP"), (
        "another class per image"
    )
    for command in ("sop", "cub", "cars"):
        assert evaluate(command, tmp_path / command, "--k", "1", *bundle).value("R@1") == pytest.approx(nearest)
    assert evaluate("recall", tmp_path / "cars", *bundle).value("R@1") == pytest.approx(nearest)
    oxford = evaluate("roxford", tmp_path / "rox", *bundle)
    assert oxford.value("mAP easy") > 0
    assert oxford.report["data"] == {"queries": 1, "database": len(paths)}
    assert evaluate("rparis", tmp_path / "rox", *bundle).value("mAP hard") == oxford.value("mAP hard")
    assert 0 <= evaluate("aircraft", tmp_path / "air", *bundle).value("accuracy") <= 1


def test_two_models_side_by_side(clip: Exported, other_clip: Exported, classes: Path, tmp_path: Path) -> None:
    same = f"{clip.name}={clip.checkpoint}"
    said = evaluate("classes", classes, "--compare", clip.folder, same, "--no-cache", "--json")
    assert [model["variant"] for model in said.report["models"]] == ["onnx-fp32-cpu", "torch-fp32-cpu"]
    assert len({model["space_id"] for model in said.report["models"]}) == 1
    assert said.report["figures"][0]["difference"]["value"] == pytest.approx(0, abs=2e-3)
    other = evaluate(
        "classes", classes, "--compare", clip.folder, other_clip.folder, "--no-cache", "--html", tmp_path / "p.html"
    )
    assert "B - A" in other.out
    assert "A: images" in other.err
    assert (tmp_path / "p.html").read_text().count("Worst queries of") == 2


def test_a_checkpoint_alone_and_the_authors_preparation(clip: Exported, classes: Path) -> None:
    options = ("--model", clip.name, "--checkpoint", clip.checkpoint, "--no-cache", "--preparation", "squash-1.125")
    said = evaluate("classes", classes, *options)
    assert "squash to 72x72, bicubic, centre 64x64" in said.out
    assert "torch-fp32-cpu" in said.out


def test_a_real_process_without_torch_and_with_a_bad_image(clip: Exported, classes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for folder in classes.iterdir():
        (data / folder.name).symlink_to(folder)
    (data / "odd").mkdir()
    (data / "odd" / "bad\x1b[31m.jpg").write_bytes(b"nope")
    code = (
        "import sys\nfrom mcip_qdrant.cli.main import main\ntry:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, 'open_clip' in sys.modules, file=sys.stderr)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "eval",
        "classes",
        data,
        "--bundle",
        clip.folder,
        "--cache",
        tmp_path / "cache",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "mAP" in done.stdout
    assert "left out: not_an_image" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr.replace("\x1b[A", "")
    assert done.stderr.rstrip().endswith("False False")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to evaluate"),
        (("--model", "ViT-B-32"), "needs both --model NAME and --checkpoint FILE"),
        (("--model", "ViT-B-32", "--checkpoint", "x", "--precision", "int8"), "a checkpoint runs in float32"),
        (("--compare", "a", "b", "--model", "x"), "--compare names both models"),
        (("--bundle", "b", "--k", "0"), "numbers from 1 on"),
    ],
)
def test_usage(classes: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        evaluate("recall", classes, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("knn", ".", ".", "--temperature", "nan"), "nan is not a finite number"),
        (("knn", ".", ".", "--temperature", "inf"), "inf is not a finite number"),
        (("collection", "images", "--bundle", "b", "--seed", "-1"), "-1 is not in the range"),
        (("collection", "images", "--bundle", "b", "--oversampling", "nan"), "nan is not a finite number"),
    ],
)
def test_numbers_that_no_protocol_can_use(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        evaluate(*arguments)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(classes: Path, tmp_path: Path) -> None:
    """No bundle is opened: there is none."""
    for page, message in ((tmp_path / "no" / "p.html", "there is no folder"), (tmp_path, "it is a folder")):
        with pytest.raises(SourceError, match=message):
            evaluate("classes", classes, "--bundle", tmp_path / "none", "--html", page)
        with pytest.raises(SourceError, match=message):
            evaluate("collection", "images", "--bundle", tmp_path / "none", "--html", page)


def test_a_checkpoint_in_a_folder_with_an_equals_sign(clip: Exported, classes: Path, tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    checkpoint = tmp_path / "lr=0.1" / clip.checkpoint.name
    checkpoint.symlink_to(clip.checkpoint)
    said = evaluate("classes", classes, "--compare", clip.folder, f"{clip.name}={checkpoint}", "--no-cache", "--json")
    assert [model["variant"] for model in said.report["models"]] == ["onnx-fp32-cpu", "torch-fp32-cpu"]


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone does not exist"):
        evaluate("classes", tmp_path / "gone", "--bundle", tmp_path)


def test_missing_extras_are_named(
    clip: Exported, classes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'jinja2.*pip install "mcip-qdrant\[eval\]"'):
        evaluate("classes", classes, "--bundle", clip.folder, "--html", tmp_path / "p.html")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r'open_clip.*pip install "mcip-qdrant\[eval,export\]"'):
        evaluate("zero-shot", classes, "--bundle", clip.folder, "--templates", "imagenet")
    (tmp_path / "cars_annos.mat").touch()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match="needs SciPy"):
        evaluate("cars", tmp_path, "--bundle", clip.folder)


COUNT, CLASSES, ASKED = 1500, 20, 25


@pytest.fixture(scope="module")
def indexed(clip: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QdrantService, Any, Any]]:
    """A server whose index is a bad one on purpose: a sparse HNSW graph over binary quantization."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, COUNT)
    made = random.normal(size=(COUNT, 32)) + np.random.default_rng(1).normal(size=(CLASSES, 32))[labels]
    vectors = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    bundle = clip.bundle
    identity = {"space_id": bundle.space_id, "model": bundle.manifest.model, "embedding_dim": 32, "format": 1}
    with qdrant_server(tmp_path_factory.mktemp("qdrant")) as service:
        client = QdrantClient(url=service.url, check_compatibility=False, timeout=120)
        client.create_collection(
            "images",
            vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE),
            hnsw_config=models.HnswConfigDiff(m=4, ef_construct=8, full_scan_threshold=10),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10),
            quantization_config=models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
            metadata={"mcip_qdrant": identity},
        )
        points = [
            models.PointStruct(
                id=point_id(str(number)),
                vector=vector.tolist(),
                payload={
                    "uri": f"file:///x/{number}.jpg",
                    "species": int(label),
                    "caption": [f"number {number}", f"a {label}"],
                },
            )
            for number, (vector, label) in enumerate(zip(vectors, labels, strict=True))
        ]
        client.upsert("images", points, wait=True)
        client.close()
        yield service, vectors, labels


def test_what_an_index_costs(indexed: tuple[QdrantService, Any, Any], clip: Exported, tmp_path: Path) -> None:
    service, vectors, labels = indexed
    where = ("collection", "images", "--bundle", clip.folder, "--qdrant", service.url, "--json")
    options = ("--class", "species", "--k", "1,10", "--queries", ASKED)
    said = evaluate(*where, *options, "--captions", "caption", "--depth", 30, "--html", tmp_path / "page.html")
    sizes = {"points": COUNT, "image queries": ASKED, "text queries": 2 * ASKED, "classes": CLASSES}
    assert said.report["data"] == sizes
    # Exact search loses nothing, and gives the figures that plain NumPy gives for the same queries.
    ids = [point_id(str(number)) for number in range(COUNT)]
    order = np.argsort(ids)
    drawn = order[np.sort(np.random.default_rng(0).permutation(COUNT)[:ASKED])]
    exact = vectors.astype(np.float64) @ vectors[drawn].astype(np.float64).T
    exact[drawn, np.arange(ASKED)] = -2
    nearest = (labels[exact.argmax(axis=0)] == labels[drawn]).mean()
    precisions = [
        average_precision_score(np.delete(labels == labels[query], query), np.delete(exact[:, place], query))
        for place, query in enumerate(drawn)
    ]
    assert said.value("index recall@10, images") == said.value("index recall@10, texts") == 1.0
    assert said.value("R@1, images") == pytest.approx(nearest)
    deep = evaluate(*where, "--class", "species", "--k", "1", "--queries", ASKED, "--depth", COUNT)
    assert deep.value(f"mAP@{COUNT}, images") == pytest.approx(np.mean(precisions), abs=1e-4)
    # The bad index loses, and texts and images are told apart.
    images, texts = said.value("index recall@10, images", 1), said.value("index recall@10, texts", 1)
    assert images < 0.95
    assert texts < 0.95
    assert said.report["figures"][0]["difference"]["high"] <= 0
    variant = said.report["models"][1]["variant"]
    assert "HNSW m=4 ef_construct=8" in variant
    assert "binary quantization" in variant
    assert "Worst queries of B: index" in (tmp_path / "page.html").read_text()
    # What the search settings buy back.
    better = evaluate(*where, *options, "--hnsw-ef", 512, "--rescore", "--oversampling", 8)
    assert better.value("index recall@10, images", 1) > images + 0.05
    assert "rescore=True oversampling=8.0" in better.report["models"][1]["variant"]


def test_texts_from_a_file_and_refusals(
    indexed: tuple[QdrantService, Any, Any], clip: Exported, other_clip: Exported, tmp_path: Path
) -> None:
    where = ("collection", "images", "--qdrant", indexed[0].url, "--json", "--queries", 5)
    (tmp_path / "texts.txt").write_text("a dog\n\ntwo cats\n")
    said = evaluate(*where, "--bundle", clip.folder, "--texts", tmp_path / "texts.txt")
    assert said.report["data"]["text queries"] == 2
    assert not [figure for figure in said.report["figures"] if figure["name"].startswith("text-to-image")]
    with pytest.raises(SpaceMismatchError):
        evaluate(*where, "--bundle", other_clip.folder)
    with pytest.raises(SourceError, match="has the payload field 'nothing'"):
        evaluate(*where, "--bundle", clip.folder, "--class", "nothing")
    with pytest.raises(McipError, match="no collection 'other'"):
        evaluate("collection", "other", "--qdrant", indexed[0].url, "--bundle", clip.folder)
    assert not issubclass(SourceError, InvalidQueryError)


def test_an_index_that_finds_other_copies_loses_nothing(clip: Exported, tmp_path: Path) -> None:
    """Each vector thirty times: whichever copies a search comes upon, they are as near as the others."""
    different, copies = 40, 30
    made = np.random.default_rng(0).normal(size=(different, 32))
    vectors = np.repeat((made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32), copies, axis=0)
    identity = {
        "space_id": clip.bundle.space_id,
        "model": clip.bundle.manifest.model,
        "embedding_dim": 32,
        "format": 1,
    }
    with qdrant_server(tmp_path) as service:
        client = QdrantClient(url=service.url, check_compatibility=False, timeout=120)
        client.create_collection(
            "copies",
            vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE),
            hnsw_config=models.HnswConfigDiff(full_scan_threshold=10),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10),
            metadata={"mcip_qdrant": identity},
        )
        points = [
            models.PointStruct(id=point_id(str(number)), vector=vector.tolist(), payload={"uri": "file:///x.jpg"})
            for number, vector in enumerate(vectors)
        ]
        client.upsert("copies", points, wait=True)
        deadline = time.monotonic() + 60
        while client.get_collection("copies").indexed_vectors_count != len(points):
            assert time.monotonic() < deadline, "the index was not built"
            time.sleep(0.1)
        said = evaluate(
            *("collection", "copies", "--bundle", clip.folder, "--qdrant", service.url, "--json"),
            *("--k", "1,10", "--queries", 60, "--hnsw-ef", len(points)),
        )
        for k in (1, 10):
            worst = []
            for number in range(60):
                query = vectors[number * 20].tolist()
                answer = client.query_points(
                    "copies", query=query, limit=k + 1, search_params=models.SearchParams(hnsw_ef=len(points))
                )
                worst.append(answer.points[-1].score)
            assert min(worst) > 1 - 1e-6, "the index itself misses nothing"
            assert said.value(f"index recall@{k}, images", 1) == 1.0
        client.close()


def test_embedded_qdrant_loses_nothing_and_says_why(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCIP_QDRANT_COLLECTION", "images")
    said = evaluate("collection", *library.where, "--class", "tag", "--json")
    assert said.value("index recall@10, images", 1) == 1.0
    assert "embedded Qdrant has no index" in said.report["notices"][0]
    assert said.report["data"]["points"] == 43
