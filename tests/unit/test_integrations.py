"""Adapters say which extra to install, and nobody but the user imports them."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from mcip_qdrant import MissingExtraError

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = {"langchain": "langchain_core", "llama_index": "llama_index", "haystack": "haystack"}


@pytest.mark.parametrize(("name", "library"), ADAPTERS.items())
def test_a_missing_library_is_named_with_its_extra(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [each for each in sys.modules if each.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, f"mcip_qdrant.integrations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    extra = name.replace("_", "-")
    with pytest.raises(MissingExtraError, match=rf'{library}.* pip install "mcip-qdrant\[{extra}\]"'):
        importlib.import_module(f"mcip_qdrant.integrations.{name}")
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_adapter_is_here() -> None:
    folder = ROOT / "mcip_qdrant" / "integrations"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(ADAPTERS)


def test_nothing_else_imports_them_or_their_libraries() -> None:
    for path in ROOT.glob("mcip_qdrant/**/*.py"):
        if path.parent.name == "integrations":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("mcip_qdrant.integrations", *ADAPTERS.values(), "langchain")), path
