"""The bundle's description of itself: frozen values that mirror `manifest.json` field by field.

Field-by-field documentation: docs/bundle-format.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from mcip_qdrant.errors import BundleError

FORMAT_VERSION = 1
_OWN_DIGEST = "manifest_sha256"

_T = TypeVar("_T")

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
Cleaning = Literal["lower", "whitespace", "canonicalize"]
Activation = Literal["gelu", "quick_gelu"]
Tower = Literal["visual", "textual"]
Precision = Literal["fp32", "fp16", "int8"]


def _choice(value: object, allowed: Any, name: str) -> None:
    if value not in get_args(allowed):
        raise BundleError(f"{name} is {value!r}; this version reads {', '.join(get_args(allowed))}")


def _plain_name(name: str) -> None:
    if PurePosixPath(name).name != name or name in {"", ".", ".."} or {"\\", "\0"} & set(name):
        raise BundleError(f"{name!r} is not a plain file name inside the bundle")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """RGB image -> pixels, in open_clip's own words (`PreprocessCfg` in open_clip/transform.py).

    `size` is (height, width) in pixels; `mean` and `std` are per RGB channel on a 0..1 scale and are already folded into the
    graph, so they are kept here as documentation and as part of `space_id`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0
    mode: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        _choice(self.interpolation, Interpolation, "preprocess.interpolation")
        _choice(self.resize_mode, ResizeMode, "preprocess.resize_mode")
        if self.mode != "RGB" or len(self.mean) != 3 or len(self.std) != 3:
            raise BundleError("preprocess must describe three RGB channels")
        if not 0 <= self.fill_color <= 255 or min(self.std) <= 0:
            raise BundleError("preprocess.fill_color must be within 0..255, and preprocess.std above 0")
        if len(self.size) != 2 or min(self.size) < 1:
            raise BundleError(f"preprocess.size {self.size} is not (height, width)")

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read open_clip's keys and values.

        Raises:
            BundleError: a key that is unknown here, or a value of the wrong kind or without meaning.
        """
        return _build(cls, raw)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """How text becomes token ids around `tokenizer.json`: cleaning before it, fixed length after it.

    `digest` is the SHA-256 of vocabulary, merges and behaviour (part of `space_id`); `sha256` is that of the file.
    """

    context_length: int
    cleaning: Cleaning
    pad_id: int
    vocab_size: int
    digest: str
    sha256: str
    file: str = "tokenizer.json"

    def __post_init__(self) -> None:
        _choice(self.cleaning, Cleaning, "tokenizer.cleaning")
        _plain_name(self.file)


@dataclass(frozen=True, slots=True)
class Parity:
    """Cosine of graph output to torch over the golden set, and the bound it had to reach."""

    minimum: float
    mean: float
    bound: float
    max_abs_difference: float
    top10_agreement: float
    provider: str


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph: a tower in one precision, with the SHA-256 of every file it consists of."""

    tower: Tower
    precision: Precision
    file: str
    sha256: Mapping[str, str]
    bytes: Mapping[str, int]
    parity: Parity
    opset: int

    def __post_init__(self) -> None:
        _choice(self.tower, Tower, "graphs.tower")
        _choice(self.precision, Precision, "graphs.precision")
        for name in (self.file, *self.sha256, *self.bytes):
            _plain_name(name)
        if self.file not in self.sha256 or set(self.sha256) != set(self.bytes):
            raise BundleError(f"graph {self.file} lacks the digest or size of one of its files")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`, parsed and checked."""

    model: str
    activation: Activation
    embedding_dim: int
    space_id: str
    preprocess: Preprocess
    tokenizer: TokenizerConfig
    graphs: tuple[Graph, ...]
    golden_sha256: str
    source: Mapping[str, Any]
    tools: Mapping[str, str]
    architecture: Mapping[str, Any]
    created_at: str
    image_rules: str
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        _choice(self.activation, Activation, "activation")
        if self.embedding_dim < 1 or len(self.space_id) != 64:
            raise BundleError("embedding_dim or space_id makes no sense")

    def to_json(self) -> str:
        """Readable JSON, keys in field order and then `manifest_sha256` over all of them, ending with a newline."""
        described = asdict(self)
        return json.dumps({**described, _OWN_DIGEST: _digest(described)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse and check.

        Raises:
            BundleError: not JSON, another format version, a field missing, unknown or of the wrong kind, or altered since it was
                written.
        """
        try:
            raw = json.loads(text)
            # Python reads NaN, infinity and halves of characters, which no other reader of JSON and no terminal takes.
            json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as exc:
            raise BundleError(f"manifest is not JSON: {exc}") from exc
        if not isinstance(raw, dict):
            raise BundleError("manifest is not a JSON object")
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"bundle format version is {version!r}, this mcip-qdrant reads {FORMAT_VERSION}: "
                "export the checkpoint again with this version, or install the version that wrote the bundle"
            )
        # Written from 0.1.0 on; bundles made before it have none.
        expected = raw.pop(_OWN_DIGEST, None)
        found = _digest(raw)
        try:
            raw["preprocess"] = Preprocess.parse(raw["preprocess"])
            raw["tokenizer"] = _build(TokenizerConfig, raw["tokenizer"])
            if not isinstance(raw["graphs"], list):
                raise BundleError("graphs is not a list")
            raw["graphs"] = tuple(
                _build(Graph, {**graph, "parity": _build(Parity, graph["parity"])}) for graph in raw["graphs"]
            )
            manifest = _build(cls, raw)
            if expected not in (None, found):
                raise BundleError(f"altered after the export ({_OWN_DIGEST} differs); copy it again")
            return manifest
        except BundleError as exc:
            raise BundleError(f"manifest: {exc}") from exc
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise BundleError(f"manifest: {type(exc).__name__}: {exc}") from exc


def _digest(described: Mapping[str, Any]) -> str:
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _build(kind: type[_T], raw: Mapping[str, Any]) -> _T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = set(raw) - known
    if unknown:
        raise BundleError(f"unknown field {sorted(unknown)[0]!r} in {kind.__name__}")
    hints = get_type_hints(kind)
    for name, value in raw.items():
        if not _fits(value, hints[name]):
            raise BundleError(f"{kind.__name__}.{name} is {value!r}, which is of the wrong kind")
    return kind(**raw)


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value is of the kind that a field's annotation asks for; `_choice` looks at words."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:
        return True
    if origin is tuple:
        kinds = itertools.repeat(inner[0]) if inner[-1] is Ellipsis else inner
        return isinstance(value, (list, tuple)) and all(map(_fits, value, kinds))
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if hint in {int, float}:
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and -math.inf < value < math.inf
    return isinstance(value, hint)
