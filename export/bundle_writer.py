"""Export one checkpoint to a bundle: everything into a hidden folder, the manifest last, then one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mcip_qdrant import golden
from mcip_qdrant.bundle import MANIFEST_FILE, Bundle, file_sha256
from mcip_qdrant.errors import ExportError
from mcip_qdrant.export import graphs
from mcip_qdrant.export.architecture import Architecture, resolve_architecture
from mcip_qdrant.export.checkpoint import load_model
from mcip_qdrant.export.golden import COUNT, make_golden_set
from mcip_qdrant.export.space_id import space_id
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.tokenizer import export_tokenizer
from mcip_qdrant.export.towers import ImageTower, TextTower
from mcip_qdrant.golden import compare
from mcip_qdrant.manifest import Graph, Manifest, Parity, Precision, Preprocess, TokenizerConfig, Tower
from mcip_qdrant.session import Device, Session
from mcip_qdrant.verify import BOUNDS, encode_in_batches

# Name and version of the decode rules of docs/bundle-format.md; stored so that a later change of rule can be told apart.
IMAGE_RULES = "mcip-qdrant/1"
_BYTES_PER_PARAMETER: dict[Precision, float] = {"fp32": 4, "fp16": 2, "int8": 1.3}
_TOOLS = ("mcip-qdrant", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tokenizers", "Pillow", "numpy")


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
    _check_output(request)
    architecture = resolve_architecture(
        request.model, pretrained=request.pretrained, quick_gelu=request.quick_gelu, base=request.base
    )
    # Before minutes of work: the tokenizer's files are what is most often missing.
    reference_tokenizer = load_reference_tokenizer(architecture.name, architecture.text_config, request.tokenizer)
    steps.begin("load checkpoint", None)
    model = load_model(architecture, checkpoint=request.checkpoint, pretrained=request.pretrained)
    _check_disk(request, model)
    with _work_folder(request.output) as work:
        tokenizer = export_tokenizer(reference_tokenizer, work, vocab_size=_vocab_size(model))
        preprocess = _preprocess(model, architecture)
        steps.begin("space_id", None)
        identity = space_id(model.state_dict(), architecture.fingerprint(), preprocess, tokenizer)
        steps.begin("golden vectors by torch", 2 * COUNT)
        made = make_golden_set(model, reference_tokenizer, preprocess, on_item=steps.advance)
        made.save(work)
        written = _write_graphs(request, model, preprocess, tokenizer, made, work, steps)
        manifest = Manifest(
            model=architecture.label,
            activation=architecture.activation,
            embedding_dim=int(made.image_vectors.shape[1]),
            space_id=identity,
            preprocess=preprocess,
            tokenizer=tokenizer,
            graphs=tuple(written),
            golden_sha256=file_sha256(work / golden.FILE),
            source=_source(request, architecture),
            tools=_tool_versions(),
            architecture=architecture.fingerprint(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            image_rules=IMAGE_RULES,
        )
        _write_durably(work / MANIFEST_FILE, manifest.to_json())
        _publish(work, request)
    return Bundle.open(request.output)


def _write_graphs(
    request: ExportRequest,
    model: torch.nn.Module,
    preprocess: Preprocess,
    tokenizer: TokenizerConfig,
    made: golden.GoldenSet,
    work: Path,
    steps: Steps,
) -> Iterator[Graph]:
    height, width = preprocess.size
    inputs: dict[Tower, tuple[Callable[[], torch.nn.Module], str, torch.Tensor, Any, Any]] = {
        "visual": (
            lambda: ImageTower(model, preprocess),
            "pixels",
            torch.zeros((2, height, width, 3), dtype=torch.uint8),
            made.pixels(preprocess),
            made.image_vectors,
        ),
        "textual": (
            lambda: TextTower(model),
            "token_ids",
            torch.zeros((2, tokenizer.context_length), dtype=torch.int64),
            made.token_ids,
            made.text_vectors,
        ),
    }
    for tower, (build, input_name, example, rows, reference) in inputs.items():
        steps.begin(f"export {tower} tower", None)
        raw = work / f"{tower}.onnx"
        graphs.export_raw(build(), example, input_name, raw, external_data_above=request.external_data_above)
        variants = [precision for precision in request.precisions if precision != "fp32"]
        for precision in variants:
            steps.begin(f"make {tower} {precision}", None)
            graphs.export_variant(raw, work / f"{tower}.{precision}.onnx", precision, external_data_above=request.external_data_above)
        if "fp32" not in request.precisions:
            for file in graphs.graph_files(raw):
                file.unlink()
        for precision in request.precisions:
            path = raw if precision == "fp32" else work / f"{tower}.{precision}.onnx"
            graphs.finish(path, input_name)
            steps.begin(f"check {tower} {precision}", COUNT)
            parity = _parity(path, precision, rows, reference, steps)
            files = graphs.graph_files(path)
            yield Graph(
                tower=tower,
                precision=precision,
                file=path.name,
                sha256={file.name: file_sha256(file) for file in files},
                bytes={file.name: file.stat().st_size for file in files},
                parity=parity,
                opset=graphs.OPSET,
            )


def _parity(path: Path, precision: Precision, rows: Any, reference: Any, steps: Steps) -> Parity:
    session = Session(path, device=Device("cpu"), precision=precision)
    found = compare(encode_in_batches(session.run, rows, steps.advance), reference)
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


def _preprocess(model: torch.nn.Module, architecture: Architecture) -> Preprocess:
    size: Any = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    settings = architecture.preprocess
    return Preprocess(
        size=(height, width),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        resize_mode=settings["resize_mode"],
    )


def _vocab_size(model: torch.nn.Module) -> int:
    vocab_size = getattr(model, "vocab_size", None) or getattr(getattr(model, "text", None), "vocab_size", None)
    if vocab_size is None:
        raise ExportError("this text tower does not tell its vocabulary size; only open_clip's own text towers can be exported")
    return int(vocab_size)


def _source(request: ExportRequest, architecture: Architecture) -> dict[str, Any]:
    source: dict[str, Any] = {"requested_model": request.model, "settings_from": architecture.decided_by}
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


def _check_output(request: ExportRequest) -> None:
    output = request.output
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"--output {output}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"--output {output}: the folder {parent} is not writable")
    if not os.path.lexists(output):
        return
    if not request.force:
        raise ExportError(f"--output {output} exists; choose another name, or pass --force to replace the bundle there")
    is_bundle = output.is_dir() and not output.is_symlink() and (output / MANIFEST_FILE).is_file()
    if not is_bundle and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"--output {output} is not a bundle; --force replaces nothing else")


def _check_disk(request: ExportRequest, model: torch.nn.Module) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    per_parameter = sum(_BYTES_PER_PARAMETER[precision] for precision in {"fp32", *request.precisions})
    needed = int(parameters * per_parameter) + 64_000_000
    folder = request.output.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"not enough disk in {folder}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. "
            "Free some, choose another --output, or fewer --precision variants"
        )


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    output = output.absolute()
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        yield work
    except OSError as exc:
        raise ExportError(f"cannot write the bundle below {output.parent}: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _publish(work: Path, request: ExportRequest) -> None:
    # mkdtemp makes 0700; a bundle is read by other users' workers.
    umask = os.umask(0)
    os.umask(umask)
    work.chmod(0o777 & ~umask)
    output = request.output.absolute()
    if request.force and output.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.replaced-", dir=output.parent))
        output.rename(replaced / "bundle")
        work.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        work.rename(output)
