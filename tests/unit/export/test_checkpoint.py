"""Checkpoint files are untrusted input."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import models
import pytest
import torch
from conftest import Exported

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.architecture import resolve_architecture
from mcip_qdrant.export.checkpoint import load_model, read_checkpoint


class Malicious:
    """Unpickling it runs a shell command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    torch.save({"w": torch.zeros(2), "x": Malicious(witness)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ExportError, match="refused, and nothing in it was run"):
        read_checkpoint(path)
    assert not witness.exists()


def test_the_malicious_pickle_is_a_real_one(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(Malicious(witness)))
    assert witness.exists()


@pytest.mark.parametrize("form", ["plain", "nested", "model", "safetensors"])
def test_every_form_gives_the_same_tensors(clip: Exported, tmp_path: Path, form: str) -> None:
    suffix = ".safetensors" if form == "safetensors" else ".pt"
    found = read_checkpoint(models.save_checkpoint(clip.model, tmp_path / f"w{suffix}", form=form))
    expected = clip.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_half_precision_weights_are_loaded_as_float32(clip: Exported, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({name: tensor.half() for name, tensor in clip.model.state_dict().items()}, path)
    model = load_model(resolve_architecture(clip.name), checkpoint=path, pretrained=None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def _changed(clip: Exported, tmp_path: Path, change: str) -> Path:
    state = dict(clip.model.state_dict())
    if change == "missing":
        del state["ln_final.weight"]
    elif change == "unexpected":
        state["ema.decay"] = torch.zeros(1)
    elif change == "misshapen":
        state["text_projection"] = torch.zeros(3, 3)
    else:
        state["text_projection"] = torch.full_like(state["text_projection"], float("nan"))
    path = tmp_path / f"{change}.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", r"1 missing \(ln_final.weight\).*wrong --model"),
        ("unexpected", r"1 unexpected \(ema.decay\)"),
        ("misshapen", r"text_projection \(3, 3\) instead of \(64, 32\)"),
        ("nan", "text_projection holds NaN"),
    ],
)
def test_keys_must_fit(clip: Exported, tmp_path: Path, change: str, words: str) -> None:
    path = _changed(clip, tmp_path, change)
    with pytest.raises(ExportError, match=words):
        load_model(resolve_architecture(clip.name), checkpoint=path, pretrained=None)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04half a zip", b"<html>"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExportError, match=name):
        read_checkpoint(path)


def test_truncated_file(clip: Exported, tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(clip.checkpoint.read_bytes()[:100_000])
    with pytest.raises(ExportError, match=r"short.pth: not a readable checkpoint"):
        read_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_something_else_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2, 3], path)
    with pytest.raises(ExportError, match="found list"):
        read_checkpoint(path)
    torch.save({"optimizer": {"lr": 1}}, path)
    with pytest.raises(ExportError, match="keys optimizer"):
        read_checkpoint(path)


def test_unknown_tag_needs_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--pretrained` without a network: our error, with the way out."""
    # The hub client's own switch, read at its import: without it the client would retry for the better part of a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    architecture = resolve_architecture("ViT-B-32", pretrained="openai")
    with pytest.raises(ExportError, match="pass --checkpoint FILE"):
        load_model(architecture, checkpoint=None, pretrained="openai")
