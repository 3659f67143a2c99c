"""The tokenizer that open_clip itself would use for a model: what an export has to reproduce."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

from mcip_qdrant.errors import ExportError

# Without tokenizer.json transformers makes up a nearly empty vocabulary and says nothing; without
# tokenizer_config.json it knows neither the kind of tokenizer nor its padding token. A special_tokens_map.json adds
# nothing to these two.
_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
_LOCAL_MODEL: Final = "local-dir:"
_HUB_TIMEOUT_S: Final = 10


def load_reference_tokenizer(model_name: str, text_cfg: Mapping[str, Any], tokenizer_dir: Path | None = None) -> Any:
    """Make open_clip's tokenizer for a model, from its configuration and, where it needs files, from a local folder.

    Files come from `tokenizer_dir`, else from the folder of a `local-dir:` model, else from the Hugging Face cache,
    else from the hub. Code that a tokenizer repository may carry is never run.

    Args:
        model_name: as open_clip takes it, with `local-dir:` or `hf-hub:` in front if need be.
        text_cfg: the `text_cfg` of the model's configuration.
        tokenizer_dir: folder with `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        ExportError: the files cannot be had (the message says which and from where), are not a tokenizer, or were given
            for a model that needs none.
    """
    given = text_cfg.get("tokenizer_kwargs") or {}
    if not isinstance(given, Mapping):
        raise ExportError(
            f"tokenizer: tokenizer_kwargs of the model's configuration is {given!r} instead of names and values"
        )
    options = dict(given)
    length = text_cfg.get("context_length") or DEFAULT_CONTEXT_LENGTH
    repository = text_cfg.get("hf_tokenizer_name")
    if not repository:
        return _bundled(model_name, options, length, tokenizer_dir)
    if options.pop("trust_remote_code", False):
        raise ExportError("tokenizer: the model's configuration asks for trust_remote_code, which is never granted")
    options |= {
        "context_length": length,
        "tokenizer_mode": text_cfg.get("tokenizer_mode"),
        "trust_remote_code": False,
    }
    if tokenizer_dir is None and model_name.startswith(_LOCAL_MODEL):
        tokenizer_dir = Path(model_name.removeprefix(_LOCAL_MODEL))
    if tokenizer_dir is not None:
        return _from_folder(tokenizer_dir, repository, options)
    return _from_hub(repository, options)


def _bundled(model_name: str, options: dict[str, Any], length: int, tokenizer_dir: Path | None) -> Any:
    if tokenizer_dir is not None:
        raise ExportError(f"{model_name} uses the tokenizer that comes with open_clip: leave out --tokenizer")
    if ":" not in model_name and "siglip" in model_name.lower():
        # open_clip would fetch a bare sentencepiece model here; no configuration it ships still does.
        raise ExportError(f"{model_name}: its configuration names no tokenizer (hf_tokenizer_name)")
    try:
        return SimpleTokenizer(context_length=length, **options)
    except (TypeError, AssertionError, OSError) as exc:
        raise ExportError(f"{model_name}: open_clip does not accept its tokenizer_kwargs {options}: {exc}") from exc


def _advice(repository: str) -> str:
    return (
        f"fetch {' and '.join(_FILES)} of https://huggingface.co/{repository} into one folder "
        f"(hf download {repository} {' '.join(_FILES)} --local-dir DIR) and pass --tokenizer DIR"
    )


def _from_folder(folder: Path, repository: str, options: dict[str, Any]) -> Any:
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ExportError(f"tokenizer folder {folder} has no {' and no '.join(missing)}; {_advice(repository)}")
    try:
        return HFTokenizer(str(folder), **options)
    except Exception as exc:
        raise ExportError(f"tokenizer folder {folder} cannot be loaded: {exc}") from exc


def _from_hub(repository: str, options: dict[str, Any]) -> Any:
    try:
        if all(isinstance(try_to_load_from_cache(repository, name), str) for name in _FILES):
            return HFTokenizer(repository, **options, local_files_only=True)
        # Asked once, briefly: without a network transformers would retry for the better part of a minute.
        for name in _FILES:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=_HUB_TIMEOUT_S)
        return HFTokenizer(repository, **options)
    except Exception as exc:  # httpx, requests, transformers and tokenizers share no base class
        reason = (str(exc).splitlines() or [""])[0]
        raise ExportError(
            f"the tokenizer {repository} cannot be had here ({type(exc).__name__}: {reason}); {_advice(repository)}"
        ) from exc
