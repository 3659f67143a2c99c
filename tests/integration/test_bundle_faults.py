"""Bundles that are missing, damaged, tampered with or of another format; `verify` and `inspect` on good ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import run, run_all
from conftest import Exported
from photos import write_archive


def _flip(path: Path) -> None:
    """Change one byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _manifest(folder: Path, *, sealed: bool = False, **changes: object) -> None:
    """Alter the manifest; its digest over itself goes, as if the bundle were older, or stays and is wrong now."""
    path = folder / "manifest.json"
    described = json.loads(path.read_text()) | changes
    if not sealed:
        del described["manifest_sha256"]
    path.write_text(json.dumps(described))


# What is done to a bundle, what the message names, and who must refuse it.
ALL = ("verify", "ingest", "search", "inspect")
DAMAGE: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "truncated graph": (
        lambda folder: (folder / "visual.onnx").write_bytes((folder / "visual.onnx").read_bytes()[:-10]),
        "visual.onnx has 6",
        ALL,
    ),
    "missing graph": (lambda folder: (folder / "textual.onnx").unlink(), "textual.onnx is missing", ALL),
    "tampered graph": (lambda folder: _flip(folder / "visual.onnx"), "visual.onnx was altered", ("verify", "ingest")),
    "tampered tokenizer": (lambda folder: _flip(folder / "tokenizer.json"), "tokenizer.json", ("verify", "ingest")),
    "tampered golden set": (
        lambda folder: _flip(folder / "golden.npz"),
        "golden.npz was altered",
        ("verify", "ingest"),
    ),
    "missing golden set": (lambda folder: (folder / "golden.npz").unlink(), "golden.npz", ("verify", "ingest")),
    "missing tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json", ("verify", "ingest")),
    "later format": (lambda folder: _manifest(folder, format_version=99), "99", ALL),
    "altered space_id": (lambda folder: _manifest(folder, sealed=True, space_id="0" * 64), "manifest_sha256", ALL),
    "wrong dimension": (lambda folder: _manifest(folder, embedding_dim=16), "16 dimensions", ("verify", "ingest")),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json", ALL),
    "manifest is not JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest", ALL),
}


def test_damage_is_named(other_clip: Exported, tmp_path: Path) -> None:
    write_archive(tmp_path / "photos", 2)
    commands, words = [], []
    for name, (damage, word, refused_by) in DAMAGE.items():
        shutil.copytree(other_clip.folder, tmp_path / name)
        damage(tmp_path / name)
        calls = {
            "verify": ("verify", name),
            "inspect": ("inspect", name),
            "ingest": ("ingest", "photos", "--bundle", name, "--qdrant", f"q {name}", "--failures", f"{name}.jsonl"),
            # Damage must be told before it is noticed that this folder does not exist.
            "search": (
                "search",
                "--bundle",
                name,
                "--text",
                "a",
                "--qdrant",
                "photos" if name == "missing tokenizer" else "none",
            ),
        }
        for command in refused_by if name in {"truncated graph", "later format"} else refused_by[:2]:
            commands.append(calls[command])
            words.append((name, word))
    for command, (name, word), said in zip(commands, words, run_all(commands, cwd=tmp_path, expect=4), strict=True):
        assert word in said.err, (command, said.err)
        assert name in said.err, (command, said.err)  # which bundle
        assert said.out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("q ")] == []


def test_no_bundle_there(tmp_path: Path) -> None:
    write_archive(tmp_path / "photos", 1)
    for command in (("ingest", "photos", "--bundle", "none"), ("verify", "none")):
        missing = run(*command, cwd=tmp_path, expect=4)
        assert "bundle none does not exist. Make one with: mcip-qdrant export" in missing.err
    assert "has no manifest.json" in run("verify", "photos", cwd=tmp_path, expect=4).err


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="a GPU may be here")
def test_a_device_that_is_not_there(clip: Exported, tmp_path: Path) -> None:
    write_archive(tmp_path / "photos", 1)
    bundle = ("--bundle", clip.folder)
    commands = [("ingest", "photos", *bundle), ("search", "--text", "a", *bundle), ("verify", clip.folder)]
    for said in run_all([(*command, "--device", "cuda") for command in commands], cwd=tmp_path, expect=4):
        assert "device cuda:0 was asked for" in said.err
        assert "mcip-qdrant[gpu]" in said.err
    for said in run_all([(*command, "--device", "nonsense") for command in commands], cwd=tmp_path, expect=4):
        assert "unknown device 'nonsense': say auto, cpu, cuda or cuda:N" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # before any work


def test_good_bundles(clip: Exported, other_clip: Exported, tmp_path: Path) -> None:
    precisions = ("fp32", "fp16", "int8")
    said = run_all([("verify", clip.folder, "--json", "--precision", name) for name in precisions], cwd=tmp_path)
    for done, precision in zip(said, precisions, strict=True):
        checked = done.json
        assert (checked["passed"], checked["space_id"]) == (True, clip.bundle.space_id)
        assert [
            (graph["tower"], graph["precision"], graph["provider"], graph["passed"]) for graph in checked["graphs"]
        ] == [
            ("visual", precision, "CPUExecutionProvider", True),
            ("textual", precision, "CPUExecutionProvider", True),
        ]
        for graph in checked["graphs"]:
            assert graph["bound"] <= graph["agreement"]["minimum"] <= 1.000001
    human = run("verify", other_clip.folder, cwd=tmp_path)
    assert human.out.count("  ok\n") == 2
    assert f"bundle {other_clip.folder} gives {other_clip.bundle.manifest.model}'s vectors on this machine" in human.out
    lacking = run("verify", other_clip.folder, "--precision", "int8", cwd=tmp_path, expect=4)
    assert "has no int8 graph" in lacking.err
    assert "--precision fp32,int8" in lacking.err

    shown = run("inspect", clip.folder, cwd=tmp_path).out
    for word in (
        "tiny-clip",
        "quick_gelu",
        "32 dimensions",
        clip.bundle.space_id,
        "64x64",
        "77 tokens",
        "visual.int8.onnx",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) < 200
    assert run("inspect", clip.folder, "--json", cwd=tmp_path).json["space_id"] == clip.bundle.space_id


def test_the_bundle_may_come_by_argument_flag_or_environment(clip: Exported, tmp_path: Path) -> None:
    by_name = {"MCIP_QDRANT_BUNDLE": str(clip.folder)}
    given = [
        ((clip.folder,), None),
        (("--bundle", clip.folder), None),
        ((), by_name),
        ((clip.folder,), {"MCIP_QDRANT_BUNDLE": "none"}),
    ]
    for arguments, environment in given:
        said = run("inspect", *arguments, "--json", cwd=tmp_path, env=environment)
        assert said.json["space_id"] == clip.bundle.space_id
    assert run("verify", "--json", cwd=tmp_path, env=by_name).json["passed"]
    for command in ("inspect", "verify"):
        assert "MCIP_QDRANT_BUNDLE" in run(command, cwd=tmp_path, expect=2).err
        assert "give the bundle once" in run(command, "a", "--bundle", "b", cwd=tmp_path, expect=2).err


def test_vectors_that_differ_are_refused(clip: Exported, other_clip: Exported, tmp_path: Path) -> None:
    """A bundle in itself consistent, whose graph is another model's: only the golden vectors can tell."""
    import hashlib

    shutil.copytree(clip.folder, tmp_path / "b")
    shutil.copy(other_clip.folder / "visual.onnx", tmp_path / "b/visual.onnx")
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    (graph,) = (graph for graph in manifest["graphs"] if graph["file"] == "visual.onnx")
    data = (tmp_path / "b/visual.onnx").read_bytes()
    graph["sha256"]["visual.onnx"], graph["bytes"]["visual.onnx"] = hashlib.sha256(data).hexdigest(), len(data)
    _manifest(tmp_path / "b", graphs=manifest["graphs"])
    refused = run("verify", "b", cwd=tmp_path, expect=4)
    assert "FAILED" in refused.out
    assert "visual fp32 on CPUExecutionProvider does not give the model's vectors" in refused.err
    said = run("verify", "b", "--json", cwd=tmp_path, expect=4).json
    assert (said["passed"], [graph["passed"] for graph in said["graphs"]]) == (False, [False, True])
