"""Towers -> ONNX files, and their fp16 and int8 variants."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from mcip_qdrant.errors import ExportError
from mcip_qdrant.manifest import Precision

# Opset 23's Attention operator is miscomputed or missing in several execution providers; 18 is what the exporter builds natively.
OPSET = 18
# Protobuf stops at 2 GiB; above this, weights go to a file of their own beside the graph.
EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000

OUTPUT_NAME = "vectors"  # "embedding" would clash with a node of the text tower


def export_fp32(
    tower: torch.nn.Module, example: torch.Tensor, input_name: str, path: Path, *, external_data_above: int
) -> None:
    """Write one tower as float32 ONNX with a dynamic batch axis.

    `example` must hold at least two items: the exporter takes a batch of one for a constant.
    """
    batch = torch.export.Dim("batch", min=1)
    with _export_settings(), torch.no_grad():
        program = torch.onnx.export(
            tower,
            (example,),
            input_names=[input_name],
            output_names=[OUTPUT_NAME],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    program.save(str(path), external_data=weight_bytes > external_data_above)
    _check(path, input_name)


@contextmanager
def _export_settings() -> Iterator[None]:
    """MultiheadAttention's fast path has no ONNX form and engages exactly in eval mode without gradients."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    root = logging.getLogger()
    level = root.level
    torch.backends.mha.set_fastpath_enabled(False)
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export and onnxscript report their own internals; what matters is checked by parity.
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        root.setLevel(level)


def _check(path: Path, input_name: str) -> None:
    model = onnx.load(path, load_external_data=False)
    opset = next(item.version for item in model.opset_import if item.domain == "")
    names = ([item.name for item in model.graph.input], [item.name for item in model.graph.output])
    if opset > 20 or names != ([input_name], [OUTPUT_NAME]):
        raise ExportError(f"the exporter produced opset {opset} with inputs and outputs {names}; this is a defect, please report")


def export_variant(source: Path, target: Path, precision: Precision, *, external_data_above: int) -> None:
    """Write an fp16 or int8 variant of a float32 graph; input and output types stay the same."""
    with warnings.catch_warnings(), _quiet_root_logger():
        warnings.simplefilter("ignore")
        if precision == "fp16":
            _to_fp16(source, target, external_data_above)
        else:
            _to_int8(source, target, external_data_above)


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantiser advises on the root logger to pre-process; dynamic quantisation of these graphs gains nothing from it."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _to_fp16(source: Path, target: Path, external_data_above: int) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    # The norm is taken in float32: in half precision a unit vector would be off by 5e-4.
    half = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, node_block_list=_normalisation_nodes(model)
    )
    size = sum(len(tensor.raw_data) for tensor in half.graph.initializer)
    _save(half, target, external=size > external_data_above)


def _normalisation_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the projection and the output: the division and what computes its divisor."""
    producers = {output: node for node in model.graph.node for output in node.output}
    names: list[str] = []
    queue = [producers[OUTPUT_NAME]]
    while queue:
        node = queue.pop()
        if node.op_type not in {"Div", "Clip", "Max", "Expand", "ReduceL2", "Sqrt", "ReduceSumSquare"} or node.name in names:
            continue
        names.append(node.name)
        queue.extend(producers[name] for name in node.input if name in producers)
    if not any(producers[OUTPUT_NAME].name == name for name in names):
        raise ExportError("the graph does not end in a normalisation; this is a defect, please report")
    return names


def _to_int8(source: Path, target: Path, external_data_above: int) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # reduce_range: without VNNI instructions, full-range int8 weights times uint8 activations saturate 16-bit sums.
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        use_external_data_format=source.with_name(source.name + ".data").exists(),
    )
    model = onnx.load(target)
    for leftover in target.parent.glob(target.name + ".*"):
        leftover.unlink()
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    _save(model, target, external=size > external_data_above)


def _save(model: onnx.ModelProto, path: Path, *, external: bool) -> None:
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)


def graph_files(path: Path) -> list[Path]:
    """The graph and, if it has one, its weight file."""
    data = path.with_name(path.name + ".data")
    return [path, data] if data.exists() else [path]
