"""Every snippet of docs/integrations.md, run from top to bottom in one process, as in a notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from offline import offline

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "integrations.md"


@pytest.fixture
def workplace(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for granted: `bundle`, `qdrant`, `photos` and `car.jpg` in the current folder."""
    (tmp_path / "bundle").symlink_to(library.bundle)
    (tmp_path / "qdrant").symlink_to(library.qdrant)
    (tmp_path / "photos").symlink_to(library.folder)
    (tmp_path / "car.jpg").symlink_to(library.folder / "photo-0005.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures(offline.__name__)
def test_every_snippet_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    snippets = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(snippets) == text.count("```") // 2, "a block that nothing runs"
    names: dict[str, Any] = {}
    try:
        for snippet in snippets:
            line = text.count("\n", 0, snippet.start(1))
            # Empty lines keep the line numbers of tracebacks those of the page.
            exec(compile("\n" * line + snippet.group(1), PAGE, "exec"), names)  # noqa: S102
    finally:
        if "client" in names:
            names["client"].close()
    assert [point.id for point in names["points"]] == [document.metadata["_id"] for document in names["documents"]]
    assert names["hits"][0].key == "photos/photo-0005.jpg"
    assert names["html"].count("<img ") == 10
    assert len(names["found"]) == 2
    assert capsys.readouterr().out.startswith("file:///")


def test_the_page_names_every_program_and_extra() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for program in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{program.name})" in text
    for link in re.findall(r"\]\(\.\./([^)]+)\)", text):
        assert (ROOT / link).is_file()
    for adapter in (ROOT / "mcip_qdrant" / "integrations").glob("[!_]*.py"):
        assert f"[cpu,{adapter.stem.replace('_', '-')}]" in text
