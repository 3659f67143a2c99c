"""The public face: complete, sorted, lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mcip_qdrant
from mcip_qdrant import errors


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert mcip_qdrant.__all__ == sorted(mcip_qdrant.__all__)
    assert set(mcip_qdrant.__all__) == set(mcip_qdrant._HOME)
    for name in mcip_qdrant.__all__:
        assert getattr(mcip_qdrant, name).__name__ == name


def test_every_public_error_is_exported() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(mcip_qdrant.__all__)


def test_every_other_error_of_ours_stays_inside_the_server() -> None:
    package = Path(mcip_qdrant.__file__).parent
    known = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.McipError)
    }
    elsewhere = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ClassDef)
                and {base.id for base in node.bases if isinstance(base, ast.Name)} & known
            ):
                elsewhere.add((str(path.relative_to(package).parent), node.name))
    elsewhere -= {(".", name) for name in known}
    assert elsewhere == {("server", "NoCollectionError"), ("server", "OverloadedError")}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mcip_qdrant.nothing


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert mcip_qdrant.__version__ == version("mcip-qdrant")
    changelog = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{mcip_qdrant.__version__}]" in changelog


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mcip_qdrant", ("qdrant_client", "onnxruntime", "numpy", "PIL", "tokenizers")),
        ("from mcip_qdrant import Bundle, QueryEncoder", ("qdrant_client", "onnxruntime", "torch", "celery")),
        ("from mcip_qdrant import ImageCollection", ("onnxruntime", "torch", "celery", "open_clip")),
        ("import mcip_qdrant.cli.main", ("qdrant_client", "onnxruntime", "numpy", "PIL", "torch", "celery")),
    ],
)
def test_imports_are_lazy(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys\n{statement}\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
