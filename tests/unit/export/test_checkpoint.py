"""Checkpoint files are untrusted input."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: (tensor * 100).to(torch.int64), "no plain float tensor but torch.int64"),
        (lambda tensor: (tensor * 100).to(torch.int8), "torch.int8"),
        (lambda tensor: tensor > 0, "torch.bool"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "device meta"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8), "torch.qint8|refused"),
    ],
    ids=["int64", "int8", "bool", "complex", "sparse", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, on making such tensors
def test_tensors_that_are_no_plain_floats(
    clip: Exported, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    state = dict(clip.model.state_dict())
    state["text_projection"] = change(state["text_projection"])
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ExportError, match=words):
        load_model(resolve_architecture(clip.name), checkpoint=tmp_path / "odd.pth", pretrained=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vision_cfg": {**models.TINY_CLIP["vision_cfg"], "no_such_key": 1}},
        {"text_cfg": {**models.TINY_CLIP["text_cfg"], "heads": 0}},
        {"embed_dim": "many"},
    ],
    ids=["unknown key", "no heads", "text"],
)
def test_a_configuration_that_open_clip_cannot_build(clip: Exported, tmp_path: Path, wrong: dict[str, object]) -> None:
    name = models.write_config(tmp_path / "wrong", models.TINY_CLIP | wrong, models.CLIP_PREPROCESS)
    with pytest.raises(ExportError, match="open_clip cannot build wrong from its configuration"):
        load_model(resolve_architecture(name), checkpoint=clip.checkpoint, pretrained=None)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04half a zip", b"<html>"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExportError, match=name):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w", "w.pth"])
def test_safetensors_under_any_name(clip: Exported, tmp_path: Path, name: str) -> None:
    path = models.save_checkpoint(clip.model, tmp_path / "w.safetensors", form="safetensors").rename(tmp_path / name)
    assert read_checkpoint(path).keys() == clip.model.state_dict().keys()


@pytest.mark.parametrize("content", [b"hello", b"epoch,loss\n1,2\n", b"\x80\x02garbage", b"\x05\0\0\0\0\0\0\0{1234"])
def test_nobody_is_told_to_load_a_file_without_protection(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ExportError, match=r"x.pth: not a readable checkpoint") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert not {"weights_only", "KeyError"} & set(str(caught.value).replace("`", " ").replace("(", " ").split())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "loss": torch.tensor(1.0)},
        lambda state: {"model": {"state_dict": state, "step": torch.tensor(5)}},
        lambda state: {"model": {"name": "ViT"}, "model_state_dict": state},
    ],
    ids=["beside a tensor", "twice", "beside a description"],
)
def test_a_state_dict_beside_other_things(
    clip: Exported, tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    state = clip.model.state_dict()
    torch.save(wrap(dict(state)), tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").keys() == state.keys()


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(ExportError, match="keys model that hold no tensor"):
        read_checkpoint(tmp_path / "endless.pth")


def test_truncated_file(clip: Exported, tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(clip.checkpoint.read_bytes()[:100_000])
    with pytest.raises(ExportError, match=r"short.pth: not a readable checkpoint"):
        read_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_a_missing_file_of_a_preset_is_released_somewhere(tmp_path: Path) -> None:
    architecture = resolve_architecture("mcip-vit-l-14-336")
    with pytest.raises(
        ExportError, match=r"no such checkpoint file; it is released at https://.*/MCIP-ViT-L-14-336.pth"
    ):
        load_model(architecture, checkpoint=tmp_path / "MCIP-ViT-L-14-336.pth", pretrained=None)


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
