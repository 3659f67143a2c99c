"""Export one checkpoint to a bundle: everything into a hidden folder, the manifest last, then one rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcip_qdrant import golden
from mcip_qdrant.bundle import MANIFEST_FILE, Bundle, file_sha256
from mcip_qdrant.errors import ExportError
from mcip_qdrant.export import graphs
from mcip_qdrant.export.architecture import LOCAL_PREFIX, Architecture, resolve_architecture
from mcip_qdrant.export.checkpoint import load_model
from mcip_qdrant.export.golden import COUNT, make_golden_set
from mcip_qdrant.export.output import check_disk, check_output, publish, work_folder, write_durably
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.space_id import space_id
from mcip_qdrant.export.tokenizer import export_tokenizer
from mcip_qdrant.export.towers import ImageTower, OpenClipModel, TextTower
from mcip_qdrant.golden import compare
from mcip_qdrant.manifest import Graph, Manifest, Parity, Precision, Preprocess, TokenizerConfig, Tower
from mcip_qdrant.session import Device, Session
from mcip_qdrant.verify import BOUNDS, encode_in_batches

# Name and version of the decode rules of docs/bundle-format.md; stored so that a later change of rule can be told apart.
IMAGE_RULES = "mcip-qdrant/1"
_TOOLS = (
    "mcip-qdrant",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tokenizers",
    "Pillow",
    "numpy",
)


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export. Exactly one of `checkpoint` and `pretrained` is given."""

    model: str
    output: Path
    checkpoint: Path | None = None
    pretrained: str | None = None
    tokenizer: Path | None = None
    precisions: Sequence[Precision] = ("fp32", "fp16")
    quick_gelu: bool | None = None
    base: str | None = None
    force: bool = False
    external_data_above: int = graphs.EXTERNAL_DATA_ABOVE_BYTES


@dataclass(frozen=True, slots=True)
class Steps:
    """Callbacks for people who wait: `begin(step name, number of items or None)`, then `advance(items)`."""

    begin: Callable[[str, int | None], object] = lambda _name, _total: None
    advance: Callable[[int], object] = lambda _items: None


def export_bundle(request: ExportRequest, steps: Steps | None = None) -> Bundle:
    """Export, check against torch, write.

    Nothing that looks finished exists before the last step: the manifest is written last, into a hidden folder beside the
    output, which then takes the output's name.

    Raises:
        ExportError: bad request or checkpoint, too little disk, output that exists, or a bound that was missed.
    """
    steps = steps or Steps()
    check_output(request.output, force=request.force)
    architecture = resolve_architecture(
        request.model, pretrained=request.pretrained, quick_gelu=request.quick_gelu, base=request.base
    )
    # Before minutes of work: the tokenizer's files are what is most often missing.
    reference_tokenizer = load_reference_tokenizer(architecture.name, architecture.text_config, request.tokenizer)
    with work_folder(request.output) as work:
        # The torch model lives inside this call only: with it, the graphs' own copies would not fit beside it.
        traced = _trace(request, architecture, reference_tokenizer, work, steps)
        written = [
            graph for raw in traced.graphs for graph in _write_variants(raw, _paths(raw, request, work), request, steps)
        ]
        manifest = Manifest(
            model=architecture.label,
            activation=architecture.activation,
            embedding_dim=traced.embedding_dim,
            space_id=traced.space_id,
            preprocess=traced.preprocess,
            tokenizer=traced.tokenizer,
            graphs=tuple(written),
            golden_sha256=file_sha256(work / golden.FILE),
            source=_source(request, architecture),
            tools=_tool_versions(),
            architecture=architecture.fingerprint(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            image_rules=IMAGE_RULES,
        )
        write_durably(work / MANIFEST_FILE, manifest.to_json())
        publish(work, request.output, force=request.force)
    return Bundle.open(request.output)


@dataclass(frozen=True, slots=True)
class _RawGraph:
    """One tower as float32 ONNX, and golden rows with the vectors that torch gave for them."""

    tower: Tower
    input_name: str
    path: Path
    rows: NDArray[Any]
    reference: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Traced:
    """What is left of the torch model once its towers are on disk."""

    space_id: str
    embedding_dim: int
    preprocess: Preprocess
    tokenizer: TokenizerConfig
    graphs: tuple[_RawGraph, ...]


def _trace(
    request: ExportRequest, architecture: Architecture, reference_tokenizer: Any, work: Path, steps: Steps
) -> _Traced:
    steps.begin("load checkpoint", None)
    model: OpenClipModel = load_model(architecture, checkpoint=request.checkpoint, pretrained=request.pretrained)
    check_disk(request.output, sum(parameter.numel() for parameter in model.parameters()), request.precisions)
    tokenizer = export_tokenizer(reference_tokenizer, work, vocab_size=_vocab_size(model))
    preprocess = architecture.image_preprocess(model.visual.image_size)
    steps.begin("space_id", None)
    identity = space_id(model.state_dict(), architecture.fingerprint(), preprocess, tokenizer)
    steps.begin("golden vectors by torch", 2 * COUNT)
    made = make_golden_set(model, reference_tokenizer, preprocess, on_item=steps.advance)
    made.save(work)
    raw = (
        _RawGraph("visual", "pixels", work / "visual.onnx", made.pixels(preprocess), made.image_vectors),
        _RawGraph("textual", "token_ids", work / "textual.onnx", made.token_ids, made.text_vectors),
    )
    # The exporter takes a batch of one for a constant, so examples hold two items.
    pixels = torch.zeros((2, *preprocess.size, 3), dtype=torch.uint8)
    token_ids = torch.zeros((2, tokenizer.context_length), dtype=torch.int64)
    towers = ((ImageTower(model, preprocess), pixels), (TextTower(model), token_ids))
    for graph, (module, example) in zip(raw, towers, strict=True):
        steps.begin(f"export {graph.tower} tower", None)
        graphs.export_raw(
            module, example, graph.input_name, graph.path, external_data_above=request.external_data_above
        )
    return _Traced(identity, int(made.image_vectors.shape[1]), preprocess, tokenizer, raw)


def _paths(raw: _RawGraph, request: ExportRequest, work: Path) -> dict[Precision, Path]:
    return {
        precision: raw.path if precision == "fp32" else work / f"{raw.tower}.{precision}.onnx"
        for precision in request.precisions
    }


def _write_variants(
    raw: _RawGraph, paths: dict[Precision, Path], request: ExportRequest, steps: Steps
) -> Iterator[Graph]:
    for precision, path in paths.items():
        if path != raw.path:
            steps.begin(f"make {raw.tower} {precision}", None)
            graphs.export_variant(raw.path, path, precision, external_data_above=request.external_data_above)
    if raw.path not in paths.values():
        for file in graphs.graph_files(raw.path):
            file.unlink()
    for precision, path in paths.items():
        graphs.finish(path, raw.input_name)
        steps.begin(f"check {raw.tower} {precision}", COUNT)
        parity = _parity(path, precision, raw, steps)
        files = graphs.graph_files(path)
        yield Graph(
            tower=raw.tower,
            precision=precision,
            file=path.name,
            sha256={file.name: file_sha256(file) for file in files},
            bytes={file.name: file.stat().st_size for file in files},
            parity=parity,
            opset=graphs.OPSET,
        )


def _parity(path: Path, precision: Precision, raw: _RawGraph, steps: Steps) -> Parity:
    session = Session(path, device=Device("cpu"), precision=precision)
    found = compare(encode_in_batches(session.run, raw.rows, steps.advance), raw.reference)
    bound = BOUNDS[precision]
    if found.minimum < bound:
        raise ExportError(
            f"{path.name} misses its bound: lowest cosine to torch {found.minimum:.6f} (golden item {found.worst_item}), mean "
            f"{found.mean:.6f}, largest difference {found.max_abs_difference:.2e}; at least {bound} is required for {precision}. "
            "Nothing was written"
        )
    return Parity(
        minimum=found.minimum,
        mean=found.mean,
        bound=bound,
        max_abs_difference=found.max_abs_difference,
        top10_agreement=found.top10_agreement,
        provider=session.provider,
    )


def _vocab_size(model: OpenClipModel) -> int:
    vocab_size = getattr(model, "vocab_size", None) or getattr(getattr(model, "text", None), "vocab_size", None)
    if vocab_size is None:
        raise ExportError(
            "this text tower does not tell its vocabulary size; only open_clip's own text towers can be exported"
        )
    return int(vocab_size)


def _source(request: ExportRequest, architecture: Architecture) -> dict[str, Any]:
    # A local architecture by its folder's name: bundles travel, the exporting machine's paths do not concern their readers.
    local = request.model.startswith(LOCAL_PREFIX)
    source: dict[str, Any] = {
        "requested_model": f"{LOCAL_PREFIX}{architecture.label}" if local else request.model,
        "settings_from": architecture.decided_by,
    }
    if request.checkpoint is not None:
        source |= {"checkpoint": request.checkpoint.name, "checkpoint_sha256": file_sha256(request.checkpoint)}
    else:
        source["pretrained"] = request.pretrained
    return source


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except ImportError:
            continue
    return versions
