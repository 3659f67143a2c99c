"""Towers -> ONNX files, and their fp16 and int8 variants."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.quiet import quiet_logging
from mcip_qdrant.manifest import Precision

# Opset 23's Attention operator is miscomputed or missing in several execution providers; 18 is what the exporter builds natively.
OPSET = 18
# Protobuf stops at 2 GiB; above this, weights go to a file of their own beside the graph.
EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000

OUTPUT_NAME = "vectors"
_RAW_OUTPUT = "projected"  # "embedding" would clash with a node of the text tower


def export_raw(
    tower: torch.nn.Module, example: torch.Tensor, input_name: str, path: Path, *, external_data_above: int
) -> None:
    """Write one tower as float32 ONNX with a dynamic batch axis, its vectors not yet normalised: see `finish`."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            tower,
            (example,),
            input_names=[input_name],
            output_names=[_RAW_OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    program.save(str(path), external_data=weight_bytes > external_data_above)
    model = onnx.load(path, load_external_data=False)
    _strip(model)
    onnx.save(model, path)


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only the exporter needed: stack traces with this machine's paths, and inferred shapes, some of them wrong."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def finish(path: Path, input_name: str) -> None:
    """End a graph in an L2 normalisation, always in float32: in half precision a unit vector would be off by 5e-4."""
    model = onnx.load(path, load_external_data=False)
    raw = model.graph.output[0]
    axes = onnx.helper.make_tensor("l2_axes", onnx.TensorProto.INT64, [1], [-1])
    model.graph.initializer.append(axes)
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceL2", [raw.name, "l2_axes"], ["l2_norm"], name="l2_norm", keepdims=1),
            onnx.helper.make_node("Div", [raw.name, "l2_norm"], [OUTPUT_NAME], name="unit_norm"),
        ]
    )
    raw.name = OUTPUT_NAME
    opset = next(item.version for item in model.opset_import if item.domain == "")
    inputs = [item.name for item in model.graph.input]
    if opset > 20 or inputs != [input_name] or len(model.graph.output) != 1:
        raise ExportError(f"the exporter produced opset {opset} with inputs {inputs}; this is a defect, please report")
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' reports on their own internals away from the user; what matters is checked by parity.

    MultiheadAttention's fast path, which has no ONNX form and engages exactly in eval mode without gradients, is off meanwhile.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_logging(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def export_variant(source: Path, target: Path, precision: Precision, *, external_data_above: int) -> None:
    """Write an fp16 or int8 variant of a raw float32 graph; input and output types stay the same."""
    with _quiet():
        if precision == "fp16":
            _to_fp16(source, target, external_data_above)
        else:
            _to_int8(source, target, external_data_above)


def _to_fp16(source: Path, target: Path, external_data_above: int) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=True)
    _save(half, target, external_data_above)


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
    for leftover in graph_files(target)[1:]:
        leftover.unlink()
    _save(model, target, external_data_above)


def _save(model: onnx.ModelProto, path: Path, external_data_above: int) -> None:
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external = size > external_data_above
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)


def graph_files(path: Path) -> list[Path]:
    """The graph and, if it has one, its weight file."""
    data = path.with_name(path.name + ".data")
    return [path, data] if data.exists() else [path]
