"""Imports go `export -> mcip_qdrant <- workers`, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "open_clip", "transformers", "timm", "onnx", "onnxscript", "safetensors"}
LAYERS = {
    # module or sub-package -> layer; it imports only from lower layers (same-layer imports would make cycles possible).
    **dict.fromkeys(("errors", "exit_codes", "cpus", "spill", "text"), 0),
    **dict.fromkeys(("manifest", "keys", "report", "stages", "extras", "mix", "hit", "store_errors", "credentials"), 1),
    **dict.fromkeys(("preprocess", "tokenizer", "session", "store", "source", "read", "failures"), 2),
    **dict.fromkeys(("decode", "collection", "points", "sink"), 3),
    **dict.fromkeys(("golden", "columns", "prune", "prepare", "bulk", "thumbnail", "picture", "space_guard"), 4),
    **dict.fromkeys(("bundle", "pipeline", "gallery"), 5),
    **dict.fromkeys(("encoder", "hits"), 6),
    **dict.fromkeys(("verify", "query"), 7),
    **dict.fromkeys(("request", "ingest", "adoption"), 8),
    **dict.fromkeys(("answer", "examples", "sheet"), 9),
    "search": 10,
    **dict.fromkeys(("integrations", "server"), 11),
}
TUNING_LAYERS = {
    **dict.fromkeys(
        ("caption_file", "files", "hyper", "listener", "nearest", "order", "losses", "processes", "state"), 0
    ),
    **dict.fromkeys(("advice", "config", "lock", "pictures", "trainees", "stored", "tensorboard"), 1),
    **dict.fromkeys(("optimisation", "student", "material", "encode", "batches"), 2),
    **dict.fromkeys(("exam", "resume"), 3),
    "loop": 4,
    **dict.fromkeys(("build", "captions"), 5),
    "train": 6,
}
EVALUATION_LAYERS = {
    **dict.fromkeys(("cache", "checkpoint", "datasets", "gnd", "model", "preparation"), 0),
    **dict.fromkeys(("ranking", "scores", "searches", "similarity"), 0),
    **dict.fromkeys(("bootstrap", "layouts", "metrics", "rows"), 1),
    "embed": 2,
    **dict.fromkeys(("evaluation", "prompts"), 3),
    **dict.fromkeys(("answers", "examples", "published"), 4),
    **dict.fromkeys(("index_cost", "labelled", "report"), 5),
    **dict.fromkeys(("page", "protocols"), 6),
}
SERVER_LAYERS = {
    **dict.fromkeys(("batching", "metrics", "page", "sample_photos", "settings"), 0),
    **dict.fromkeys(("access", "protocol", "schema_fields", "text_limits", "turns"), 1),
    **dict.fromkeys(("embedding_schemas", "problems", "program", "search_schemas"), 2),
    **dict.fromkeys(("archive", "embedder", "guard"), 3),
    **dict.fromkeys(("embeddings_api", "thumbnails"), 4),
    "search_api": 5,
    "app": 6,
}
# Packages of the command line and of its offline work; nothing of the core imports them.
APART = {"cli", "evaluation", "tuning"}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import; say the whole name")
    return found


def _modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


CORE = [path for path in _modules("mcip_qdrant") if not APART & set(path.parts)]
EVALUATION = [path for path in _modules("mcip_qdrant/evaluation") if path.stem != "__init__"]
SERVER = [path for path in _modules("mcip_qdrant/server") if path.stem != "__init__"]
TUNING = [path for path in _modules("mcip_qdrant/tuning") if path.stem != "__init__"]


def _name(path: Path) -> str:
    """`mcip_qdrant/search.py` -> `search`, `mcip_qdrant/integrations/langchain.py` -> `integrations`."""
    return path.relative_to(ROOT / "mcip_qdrant").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_imports_neither_export_nor_workers_nor_anything_heavy(path: Path) -> None:
    names = _imports(path)
    others = ("export", "workers", "world", *sorted(APART))
    assert (
        not {name for name in names if name.startswith(tuple(f"mcip_qdrant.{other}" for other in others))}
        or path.stem == "__main__"
    )
    assert not {name.split(".")[0] for name in names} & (HEAVY | {"celery", "kombu", "redis", "workers", "export"})


@pytest.mark.parametrize("path", _modules("workers"), ids=lambda path: path.stem)
def test_workers_know_neither_torch_nor_export(path: Path) -> None:
    names = _imports(path)
    assert not {name.split(".")[0] for name in names} & HEAVY
    assert not {name for name in names if name.startswith(("mcip_qdrant.export", "mcip_qdrant.cli"))}


@pytest.mark.parametrize("path", _modules("export"), ids=lambda path: path.stem)
def test_export_does_not_know_workers(path: Path) -> None:
    assert not {
        name for name in _imports(path) if name.startswith(("mcip_qdrant.workers", "mcip_qdrant.cli", "export"))
    }


def test_every_core_module_has_a_layer() -> None:
    assert {_name(path) for path in CORE} - {"__init__", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("path", [path for path in CORE if _name(path) in LAYERS], ids=lambda path: path.stem)
def test_data_flows_one_way(path: Path) -> None:
    me = _name(path)
    below = {name.split(".")[1] for name in _imports(path) if name.startswith("mcip_qdrant.")} - {me}
    wrong = {name for name in below if LAYERS.get(name, -1) >= LAYERS[me]}
    assert not wrong, f"{me} (layer {LAYERS[me]}) imports {wrong}"


def test_the_server_s_own_description_names_its_modules() -> None:
    described = ast.get_docstring(ast.parse((ROOT / "mcip_qdrant/server/__init__.py").read_text(encoding="utf-8")))
    assert described is not None
    assert {path.stem for path in SERVER} == set(SERVER_LAYERS)
    assert set(SERVER_LAYERS) <= set(re.findall(r"\w+", described))


@pytest.mark.parametrize("path", SERVER, ids=lambda path: path.stem)
def test_the_server_flows_one_way_too(path: Path) -> None:
    below = {name.split(".")[2] for name in _imports(path) if name.startswith("mcip_qdrant.server.")}
    wrong = {name for name in below if SERVER_LAYERS.get(name, -1) >= SERVER_LAYERS[path.stem]}
    assert not wrong, f"{path.stem} imports {wrong}"


@pytest.mark.parametrize("path", TUNING, ids=lambda path: path.stem)
def test_tuning_flows_one_way_too(path: Path) -> None:
    names = _imports(path)
    below = {name.split(".")[2] for name in names if name.startswith("mcip_qdrant.tuning.")}
    wrong = {name for name in below if TUNING_LAYERS.get(name, -1) >= TUNING_LAYERS[path.stem]}
    assert not wrong, f"{path.stem} imports {wrong}"
    assert not {name for name in names if name.startswith(("mcip_qdrant.workers", "mcip_qdrant.cli"))}


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_evaluation_flows_one_way_and_only_its_checkpoint_reader_knows_torch(path: Path) -> None:
    names = _imports(path)
    below = {name.split(".")[2] for name in names if name.startswith("mcip_qdrant.evaluation.")}
    wrong = {name for name in below if EVALUATION_LAYERS.get(name, -1) >= EVALUATION_LAYERS[path.stem]}
    assert not wrong, f"{path.stem} imports {wrong}"
    assert not {
        name for name in names if name.startswith(("mcip_qdrant.workers", "mcip_qdrant.cli", "mcip_qdrant.tuning"))
    }
    if path.stem != "checkpoint":
        assert "checkpoint" not in below
        assert not {name.split(".")[0] for name in names} & HEAVY
        assert not {name for name in names if name.startswith("mcip_qdrant.export")}


@pytest.mark.parametrize("folder", ["mcip_qdrant", "export", "workers", "demo/world"])
def test_modules_stay_readable(folder: str) -> None:
    long = {path.name: lines for path in _modules(folder) if (lines := len(path.read_text().splitlines())) > 300}
    assert not long, f"split these before a second job arrives: {long}"
