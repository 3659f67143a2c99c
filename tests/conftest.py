"""Fixtures that several tests share. Models and bundles are built once per session, in a temporary folder."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import pytest

from mcip_qdrant.bundle import Bundle


def pytest_configure() -> None:
    """Children inherit an ignored Ctrl-C, as a suite started in the background has; the tests need to send one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Fixtures that live longer than a test must not see a developer's own settings either.
    for name in [name for name in os.environ if name.startswith("MCIP_QDRANT_")]:
        del os.environ[name]
    # Read when these libraries are imported: no tests report to their makers.
    os.environ.update(HAYSTACK_TELEMETRY_ENABLED="false", LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false")


def _process_state() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {
        "the root logger's level": logging.getLogger().level,
        "logging.disable": logging.root.manager.disable,
        "the current folder": Path.cwd(),
        "the environment": environment,
        "SIGINT's handler": signal.getsignal(signal.SIGINT),
        "SIGTERM's handler": signal.getsignal(signal.SIGTERM),
    }


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    """What a test changes for the whole process is found by another test, and only if that runs later in the same process."""
    before = _process_state()
    yield
    after = _process_state()
    changed = [f"{what}: {before[what]!r}, now {after[what]!r}" for what in before if before[what] != after[what]]
    assert not changed, f"this test leaves changed behind: {'; '.join(changed)}"


@pytest.fixture(autouse=True)
def _clean_environment(_leaves_no_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("MCIP_QDRANT_"):
            monkeypatch.delenv(name)


@dataclass(frozen=True)
class Exported:
    """A model in all its forms: torch, checkpoint file, `--model` value, bundle folder."""

    model: Any
    name: str
    checkpoint: Path
    folder: Path

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.folder)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and bundles of this session are built."""
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def clip(workshop: Path) -> Exported:
    """A tiny CLIP with QuickGELU, exported in all precisions."""
    return _export(
        workshop, "tiny-clip", models.TINY_CLIP, models.CLIP_PREPROCESS, seed=0, precisions=("fp32", "fp16", "int8")
    )


@pytest.fixture(scope="session")
def other_clip(workshop: Path) -> Exported:
    """Same architecture and dimension as `clip`, other weights: what a dimension check cannot tell apart."""
    return _export(workshop, "other-clip", models.TINY_CLIP, models.CLIP_PREPROCESS, seed=1, precisions=("fp32",))


def _export(
    workshop: Path, label: str, config: dict[str, Any], preprocess: dict[str, Any], *, seed: int, precisions: Any
) -> Exported:
    from mcip_qdrant.export.bundle_writer import ExportRequest, export_bundle

    name = models.write_config(workshop / label, config, preprocess)
    model = models.random_model(name, seed=seed)
    checkpoint = models.save_checkpoint(model, workshop / f"{label}.pth")
    folder = workshop / f"{label}.bundle"
    export_bundle(ExportRequest(model=name, checkpoint=checkpoint, output=folder, precisions=precisions))
    return Exported(model, name, checkpoint, folder)
