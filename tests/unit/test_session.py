"""Devices: what was asked for and is not active is an error, never a silent fallback."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import Exported

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.errors import BundleError, DeviceError
from mcip_qdrant.session import CPU_PROVIDER, Device, Session, choose_provider, default_precision

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.mark.parametrize(
    ("text", "device"),
    [("auto", Device("auto")), ("CPU", Device("cpu")), (" cuda ", Device("cuda")), ("cuda:3", Device("cuda", 3))],
)
def test_parse(text: str, device: Device) -> None:
    assert Device.parse(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cpu:1", "auto:0", "cuda:-1"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu, cuda or cuda:N"):
        Device.parse(text)


@pytest.mark.skipif(not NO_CUDA, reason="this machine's ONNX Runtime has CUDA; the refusal can only be seen without it")
def test_cuda_is_refused_where_the_runtime_lacks_it() -> None:
    with pytest.raises(DeviceError, match=r"mcip-qdrant\[gpu\]"):
        choose_provider(Device("cuda"))
    assert choose_provider(Device("auto")) == CPU_PROVIDER


def test_cpu_takes_fp32_and_cuda_fp16() -> None:
    assert default_precision(CPU_PROVIDER) == "fp32"
    assert default_precision("CUDAExecutionProvider") == "fp16"


def test_the_active_provider_is_what_onnx_runtime_says(clip: Exported) -> None:
    graph = clip.folder / "visual.onnx"
    assert Session(graph, device=Device("cpu"), precision="fp32", threads=1).provider == CPU_PROVIDER


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="broken.onnx"):
        Session(tmp_path / "broken.onnx", device=Device("cpu"), precision="fp32")


def _opened(clip: Exported, **changes: object) -> Bundle:
    bundle = clip.bundle
    return Bundle(bundle.directory, replace(bundle.manifest, **changes))  # type: ignore[arg-type]


def test_a_graph_of_other_shapes_than_the_manifest_says_is_refused(clip: Exported) -> None:
    """Before it runs: a wrong size or dimension would otherwise be noticed by ONNX Runtime or by Qdrant, or by nobody."""
    cpu = EncoderSettings(Device("cpu"))
    manifest = clip.bundle.manifest
    with pytest.raises(
        BundleError, match=r"visual\.onnx takes rows of shape \[64, 64, 3\], the manifest says \[32, 64, 3\]"
    ):
        ImageEncoder(_opened(clip, preprocess=replace(manifest.preprocess, size=(32, 64))), cpu)
    for encoder in (ImageEncoder, TextEncoder):
        with pytest.raises(BundleError, match=r"gives rows of shape \[32\], the manifest says \[16\]"):
            encoder(_opened(clip, embedding_dim=16), cpu)
    for precision in ("fp32", "fp16", "int8"):
        settings = EncoderSettings(Device("cpu"), precision)  # type: ignore[arg-type]
        TextEncoder(clip.bundle, settings), ImageEncoder(clip.bundle, settings)


def test_a_graph_that_loads_but_does_not_run_is_the_bundle_s_fault(clip: Exported) -> None:
    session = Session(clip.folder / "visual.onnx", device=Device("cpu"), precision="fp32")
    with pytest.raises(BundleError, match=r"visual\.onnx: ONNX Runtime cannot run this graph"):
        session.run(np.zeros((1, 32, 64, 3), np.uint8))


def test_the_callers_arithmetic_stays_as_it_is(clip: Exported) -> None:
    """ONNX Runtime switches subnormal floats off for the thread that makes a process's first session, and for its later threads."""
    script = (
        "import sys, threading; from pathlib import Path; from mcip_qdrant.session import Device, Session; import numpy\n"
        "session = Session(Path(sys.argv[1]), device=Device('cpu'), precision='fp32', threads=2)\n"
        "session.run(numpy.zeros((2, 64, 64, 3), numpy.uint8))\n"
        "def show(): print(float.fromhex('0x1p-1060') * float(sys.argv[2]))\n"
        "show(); later = threading.Thread(target=show); later.start(); later.join()"
    )
    command = [sys.executable, "-c", script, str(clip.folder / "visual.onnx"), "1.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8.095e-320"] * 2
