"""The small model and archive, once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuning_support import write_archive, write_model


@pytest.fixture(scope="session")
def student_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(`--model` value, checkpoint)."""
    return write_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of images with classes and captions; look only."""
    return write_archive(tmp_path_factory.mktemp("archive"))
