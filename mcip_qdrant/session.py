"""The only module that talks to ONNX Runtime: devices, session options, and the check of what is really active."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.errors import BundleError, DeviceError, MissingExtraError
from mcip_qdrant.manifest import Precision

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
_WARNING, _FATAL = 2, 4  # ONNX Runtime's log severities


@dataclass(frozen=True, slots=True)
class Device:
    """What was asked for: `auto`, `cpu`, or `cuda` with the number of the GPU."""

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            DeviceError: anything else.
        """
        match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", text.strip().lower())
        if match is None or (match[2] is not None and match[1] != "cuda"):
            raise DeviceError(f"unknown device {text!r}: say auto, cpu, cuda or cuda:N")
        return cls(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


AUTO = Device("auto")


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtraError(
            'ONNX Runtime is not installed. Choose one: pip install "mcip-qdrant[cpu]" or pip install "mcip-qdrant[gpu]"'
        ) from exc
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingExtraError(
            "the installed ONNX Runtime is incomplete (onnxruntime and onnxruntime-gpu overwrite each other): "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them again"
        )
    return onnxruntime


def default_precision(provider: str) -> Precision:
    """fp16 on CUDA, fp32 elsewhere; int8 only when asked for."""
    return "fp16" if provider == CUDA_PROVIDER else "fp32"


def choose_provider(device: Device) -> str:
    """The execution provider that `device` stands for on this machine.

    `auto` takes CUDA where a CUDA session really starts, else the CPU.

    Raises:
        DeviceError: CUDA was asked for, and this ONNX Runtime does not have it.
        MissingExtraError: no ONNX Runtime.
    """
    runtime = _runtime()
    has_cuda = CUDA_PROVIDER in runtime.get_available_providers()
    if device.kind == "cuda":
        if not has_cuda:
            raise DeviceError(
                f"device {device} was asked for, but the installed ONNX Runtime has only "
                f'{", ".join(runtime.get_available_providers())}. Uninstall onnxruntime, then pip install "mcip-qdrant[gpu]"'
            )
        return CUDA_PROVIDER
    # The GPU wheel lists CUDA on machines without a GPU, and its sessions then run on the CPU without an error.
    return CUDA_PROVIDER if device.kind == "auto" and has_cuda and _cuda_starts(device.index) else CPU_PROVIDER


@cache
def _cuda_starts(index: int) -> bool:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    # Not having CUDA is an answer here, not an error to report.
    runtime.set_default_logger_severity(_FATAL)
    try:
        _preload_cuda(io.StringIO())
        probe = runtime.InferenceSession(_IDENTITY_GRAPH, options, providers=[(CUDA_PROVIDER, {"device_id": index})])
    finally:
        runtime.set_default_logger_severity(_WARNING)
    return bool(probe.get_providers()[0] == CUDA_PROVIDER)


def _preload_cuda(report: TextIO) -> None:
    """Load CUDA's libraries from their Python packages. ONNX Runtime prints what it misses to stdout, which is for results."""
    with contextlib.redirect_stdout(report):
        _runtime().preload_dlls()


# One Identity node, float32 [1] -> [1], opset 18, as serialised by onnx: enough to see which provider a session gets.
_IDENTITY_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001012"
)


class Session:
    """One loaded graph on one execution provider. `run` may be called from several threads."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device,
        precision: Precision,
        threads: int | None = None,
    ) -> None:
        """Load a graph.

        Args:
            threads: threads inside one operator; default: the processors this process may use.

        Raises:
            DeviceError: the provider asked for is not the one that is active.
            BundleError: ONNX Runtime cannot read the graph.
        """
        runtime = _runtime()
        provider = choose_provider(device)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or available_cpus()
        # Threads may busy-wait between two operators, never between two runs: decode threads need the cores then, and a
        # service would burn them (docs/adr/0006).
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Subnormal floats cost ten times an ordinary operation on CPUs and carry nothing.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if precision == "fp16":
            # ONNX Runtime 1.31 crashes on the CPU when its layout optimiser meets these fp16 graphs; it does nothing on CUDA.
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            # On the CPU every weight is cast on the way; planning one block for all casts at once would double the memory.
            options.enable_mem_pattern = provider == CUDA_PROVIDER
        providers: list[Any] = [CPU_PROVIDER]
        if provider == CUDA_PROVIDER:
            _preload_cuda(sys.stderr)
            providers = [(CUDA_PROVIDER, _cuda_options(device.index)), CPU_PROVIDER]
        try:
            # In a thread of its own, because the first session of a process also switches subnormal floats off for the thread
            # that makes it, for good: that would change the arithmetic of the application that calls us.
            with ThreadPoolExecutor(1) as maker:
                self._session = maker.submit(runtime.InferenceSession, str(path), options, providers=providers).result()
        except Exception as exc:  # onnxruntime raises a dozen classes that share no base
            raise BundleError(f"{path}: ONNX Runtime cannot load this graph: {exc}") from exc
        self.provider = str(self._session.get_providers()[0])
        if self.provider != provider:
            raise DeviceError(
                f"device {device} was asked for, but ONNX Runtime fell back to {self.provider}. "
                'Check the driver (nvidia-smi) and the CUDA 13 libraries: pip install "mcip-qdrant[gpu]"'
            )
        self._path = path
        self._input = self._session.get_inputs()[0].name

    def require_shapes(self, row: tuple[int, ...], embedding_dim: int) -> None:
        """Check that the graph takes `[B, *row]` and gives `[B, embedding_dim]`; an axis that it leaves open fits.

        Raises:
            BundleError: naming what differs.
        """
        ends = (
            ("takes", self._session.get_inputs()[0], row),
            ("gives", self._session.get_outputs()[0], (embedding_dim,)),
        )
        for what, end, wanted in ends:
            found = tuple(end.shape[1:])
            if len(found) != len(wanted) or any(
                isinstance(a, int) and a != b for a, b in zip(found, wanted, strict=True)
            ):
                raise BundleError(f"{self._path} {what} rows of shape {list(found)}, the manifest says {list(wanted)}")

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run one batch: uint8 `[B, H, W, 3]` or int64 `[B, L]` in, float32 `[B, D]` out.

        Raises:
            BundleError: the graph loads on the CPU, but does not run there.
        """
        try:
            output: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        except Exception as exc:
            # A GPU fails for reasons of its own, and memory runs out anywhere: not the bundle's fault, and worth another try.
            if self.provider != CPU_PROVIDER or "alloc" in str(exc):
                raise
            raise BundleError(f"{self._path}: ONNX Runtime cannot run this graph: {exc}") from exc
        return output


def _cuda_options(index: int) -> dict[str, str]:
    return {
        "device_id": str(index),
        # Doubling the arena on each growth reserves up to twice the memory that is needed.
        "arena_extend_strategy": "kSameAsRequested",
        # The default search benchmarks every convolution again for each new batch size; there is one convolution.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
