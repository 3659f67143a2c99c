"""What is refused, what the digest notices, and where a reference tokenizer may come from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from tokenizer_texts import write_siglip_style
from tokenizers import models, normalizers, pre_tokenizers, processors

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export import reference_tokenizer
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.tokenizer import export_tokenizer
from mcip_qdrant.tokenizer import Tokenizer

SIGLIP_TEXT = {
    "context_length": 64,
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip_style(tmp_path_factory.mktemp("siglip-style"), size=1000)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a cache nor a network."""

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(reference_tokenizer, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(reference_tokenizer, "get_hf_file_metadata", away)


def bert_style(**options: Any) -> Any:
    """open_clip's wrapper around a word-level tokenizer with [CLS] and [SEP], made without files."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "cat": 5, "photo": 6, "fi": 7}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    reference = HFTokenizer.__new__(HFTokenizer)
    for name, value in HFTOKENIZER_DEFAULTS.items():
        setattr(reference, name, value)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    reference.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **(names | options))
    return reference


HFTOKENIZER_DEFAULTS = {
    "tokenizer_mode": "",
    "context_length": 12,
    "clean_fn": SimpleTokenizer().clean_fn,
    "strip_sep_token": False,
}


def siglip(folder: Path, **options: Any) -> Any:
    return HFTokenizer(str(folder), **({"context_length": 64, "clean": "canonicalize"} | options))


def test_config_describes_the_file(tmp_path: Path, siglip_folder: Path) -> None:
    config = export_tokenizer(siglip(siglip_folder), tmp_path, vocab_size=1000)
    assert (config.context_length, config.cleaning, config.pad_id) == (64, "canonicalize", 1)
    assert (config.vocab_size, config.file) == (1000, "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_other_tokenizers_keep_their_normalizer_and_sides(tmp_path: Path, side: str) -> None:
    reference = bert_style(padding_side=side, truncation_side=side)
    ours = Tokenizer.open(tmp_path, export_tokenizer(reference, tmp_path, vocab_size=8))
    texts = ["a photo of a cat", "[SEP] a [CLS]", "a cat " * 20, "", "\ufb01 \uff41", "?"]
    assert ours.encode(texts).ids.tolist() == reference(texts).tolist()


def test_siglip_s_older_wrapper(tmp_path: Path, siglip_folder: Path) -> None:
    reference = SigLipTokenizer.__new__(SigLipTokenizer)
    reference.tokenizer, reference.context_length = siglip(siglip_folder).tokenizer, 16
    config = export_tokenizer(reference, tmp_path, vocab_size=1000)
    assert (config.cleaning, config.context_length) == ("canonicalize", 16)


def test_ids_past_the_model_are_refused_with_both_numbers(tmp_path: Path, siglip_folder: Path) -> None:
    with pytest.raises(ExportError, match=r"go up to 999.*vocabulary has 999 tokens"):
        export_tokenizer(siglip(siglip_folder), tmp_path, vocab_size=999)
    with pytest.raises(ExportError, match=r"go up to 49407.*vocabulary has 32000 tokens"):
        export_tokenizer(SimpleTokenizer(), tmp_path, vocab_size=32000)


def test_sentinels_that_no_cleaned_text_can_spell_may_lie_past_the_model(tmp_path: Path, siglip_folder: Path) -> None:
    reference = siglip(siglip_folder)
    reference.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    assert export_tokenizer(reference, tmp_path, vocab_size=1000).vocab_size == 1000
    reference = siglip(siglip_folder, clean="lower")
    reference.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    with pytest.raises(ExportError, match="go up to 1000"):
        export_tokenizer(reference, tmp_path, vocab_size=1000)


def test_a_smaller_tokenizer_only_warns(tmp_path: Path, siglip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mcip_qdrant"):
        export_tokenizer(siglip(siglip_folder), tmp_path, vocab_size=1000)
        assert not caplog.records
        export_tokenizer(siglip(siglip_folder), tmp_path, vocab_size=1100)
    assert [record.getMessage() for record in caplog.records] == [
        "tokenizer knows ids up to 999, the model has 1100 tokens"
    ]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("tokenizer_mode", "clips", "tokenizer_mode 'clips' is not supported"),
        ("strip_sep_token", True, "strip_sep_token"),
        ("clean_fn", str.strip, "cleaning of HFTokenizer is none of"),
        ("context_length", None, "no context length"),
        ("tokenizer", object(), "written in Python"),
    ],
)
def test_options_that_the_file_cannot_express(tmp_path: Path, attribute: str, value: object, message: str) -> None:
    reference = bert_style()
    setattr(reference, attribute, value)
    with pytest.raises(ExportError, match=message):
        export_tokenizer(reference, tmp_path, vocab_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pad_token": None}, "no padding token"), ({"split_special_tokens": True}, "split_special_tokens")],
)
def test_transformers_options_that_the_file_cannot_express(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_tokenizer(bert_style(**options), tmp_path, vocab_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_mask": "random"}, "at random"),
        ({"clean": "whitespace"}, "case kept"),
        ({"additional_special_tokens": ["<more>"]}, "words are split by"),
    ],
)
def test_byte_pair_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_tokenizer(SimpleTokenizer(**options), tmp_path, vocab_size=50000)


def test_a_difference_is_found_before_anyone_relies_on_it(tmp_path: Path) -> None:
    reference = bert_style()
    plain = reference.tokenizer

    class Shouting(type(plain)):  # type: ignore[misc]
        def __call__(self, text: list[str], **options: Any) -> Any:
            return super().__call__([f"a {one}" for one in text], **options)

    reference.tokenizer.__class__ = Shouting
    with pytest.raises(ExportError, match="other ids than open_clip's own tokenizer for 'a photo of a cat'"):
        export_tokenizer(reference, tmp_path, vocab_size=8)


def test_digest_ignores_how_the_file_is_written(tmp_path: Path, siglip_folder: Path) -> None:
    reference = siglip(siglip_folder)
    first = export_tokenizer(reference, tmp_path, vocab_size=1000)
    reference.tokenizer.backend_tokenizer.decoder = tokenizers.decoders.Fuse()  # does not touch ids
    second = export_tokenizer(reference, tmp_path, vocab_size=1000)
    assert first.sha256 != second.sha256
    assert first.digest == second.digest


def test_digest_notices_what_ids_depend_on(tmp_path: Path, siglip_folder: Path) -> None:
    folders = {name: tmp_path / name for name in ("score", "piece")}
    for name, folder in folders.items():
        folder.mkdir()
        for file in siglip_folder.iterdir():
            content = json.loads(file.read_text(encoding="utf-8"))
            if file.name == "tokenizer.json":
                piece = content["model"]["vocab"][390]
                content["model"]["vocab"][390] = [piece[0], piece[1] - 1] if name == "score" else ["▁ŋŋ", piece[1]]
            (folder / file.name).write_text(json.dumps(content), encoding="utf-8")
    references = [
        siglip(siglip_folder),
        siglip(siglip_folder, context_length=32),
        siglip(siglip_folder, clean="lower"),
        siglip(folders["score"]),
        siglip(folders["piece"]),
        SimpleTokenizer(),
        _swapped_merges(),
    ]
    digests = {export_tokenizer(reference, tmp_path, vocab_size=49408).digest for reference in references}
    assert len(digests) == len(references)


def _swapped_merges() -> Any:
    reference = SimpleTokenizer()
    first, second = list(reference.bpe_ranks)[40_000:40_002]
    ranks = reference.bpe_ranks
    ranks[first], ranks[second] = ranks[second], ranks[first]
    return reference


def test_bundled_tokenizer_needs_no_files() -> None:
    reference = load_reference_tokenizer("ViT-L-14-336", {"context_length": 77, "vocab_size": 49408})
    assert isinstance(reference, SimpleTokenizer)
    assert load_reference_tokenizer("x", {"context_length": 32}).context_length == 32
    assert load_reference_tokenizer("x", {}).context_length == 77


def test_a_folder_for_a_model_that_needs_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="leave out --tokenizer"):
        load_reference_tokenizer("ViT-L-14-336", {}, tmp_path)


def test_from_a_folder(siglip_folder: Path, no_hub: None) -> None:
    given = load_reference_tokenizer("ViT-SO400M-14-SigLIP-384", SIGLIP_TEXT, siglip_folder)
    own = load_reference_tokenizer(f"local-dir:{siglip_folder}", SIGLIP_TEXT)
    expected = siglip(siglip_folder)(["A photo, of a cat!"]).tolist()
    assert given(["A photo, of a cat!"]).tolist() == own(["A photo, of a cat!"]).tolist() == expected
    assert given.context_length == 64


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, siglip_folder: Path, name: str) -> None:
    for file in siglip_folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ExportError, match=rf"has no {name}; fetch .* of https://huggingface\.co/timm/ViT-B-16-SigLIP"):
        load_reference_tokenizer("ViT-SO400M-14-SigLIP-384", SIGLIP_TEXT, tmp_path)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match="cannot be loaded"):
        load_reference_tokenizer("ViT-SO400M-14-SigLIP-384", SIGLIP_TEXT, tmp_path)


def test_without_a_network_the_message_says_what_to_fetch(no_hub: None) -> None:
    with pytest.raises(ExportError) as caught:
        load_reference_tokenizer("ViT-SO400M-14-SigLIP-384", SIGLIP_TEXT)
    message = str(caught.value)
    for part in ("timm/ViT-B-16-SigLIP", "tokenizer.json", "tokenizer_config.json", "--tokenizer DIR", "not known"):
        assert part in message


def test_a_tokenizer_s_own_code_is_never_run(tmp_path: Path, siglip_folder: Path) -> None:
    for file in siglip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Evil: pass\n")
    with pytest.raises(ExportError):
        load_reference_tokenizer("m", SIGLIP_TEXT, tmp_path)
    asking = SIGLIP_TEXT | {"tokenizer_kwargs": {"clean": "canonicalize", "trust_remote_code": True}}
    with pytest.raises(ExportError, match="never granted"):
        load_reference_tokenizer("m", asking, tmp_path)
    assert not ran.exists()


def test_a_siglip_name_without_a_tokenizer_is_not_taken_for_clip() -> None:
    with pytest.raises(ExportError, match="names no tokenizer"):
        load_reference_tokenizer("ViT-X-SigLIP", {})


def test_unknown_options_are_reported() -> None:
    with pytest.raises(ExportError, match="does not accept"):
        load_reference_tokenizer("m", {"tokenizer_kwargs": {"colour": "red"}})


def test_tokenizer_kwargs_that_are_none() -> None:
    with pytest.raises(ExportError, match="tokenizer_kwargs of the model's configuration is 5"):
        load_reference_tokenizer("local-dir:x", {"tokenizer_kwargs": 5})


def test_scores_are_written_as_the_reference_has_them(siglip_folder: Path, tmp_path: Path) -> None:
    """The library's reader moves one score in eight by a unit in the last place, and equally good splits then come out otherwise."""
    reference = load_reference_tokenizer("ViT-B-16-SigLIP", SIGLIP_TEXT, siglip_folder)
    export_tokenizer(reference, tmp_path, vocab_size=1000)

    def scores(text: str) -> list[Any]:
        found: list[Any] = json.loads(text)["model"]["vocab"]
        return found

    expected = scores(reference.tokenizer.backend_tokenizer.to_str())
    assert len({score for _, score in expected}) > 100
    assert scores((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) == expected
