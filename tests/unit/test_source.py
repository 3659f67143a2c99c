"""Listings: folders as they really are, and lists as other programs write them."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import open_folder, without_privileges

from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import decode_path
from mcip_qdrant.source import FolderSource, ListingReport, ListSource, Source, check_root


def touch(root: Path, *names: str | bytes) -> None:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)


def listed(source: Source) -> tuple[list[bytes], ListingReport]:
    report = ListingReport()
    refs = list(source(report))
    assert {ref.source for ref in refs} <= {source.name}
    return [decode_path(ref.relative) for ref in refs], report


def folder(root: Path, *, every_file: bool = False) -> tuple[list[bytes], ListingReport]:
    return listed(FolderSource("s", root, every_file))


def from_list(root: Path, data: bytes, separator: bytes = b"\n") -> tuple[list[bytes], ListingReport]:
    return listed(ListSource("s", root, io.BytesIO(data), separator))


def test_nested_folders_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "b/2.jpg", "b/1.jpg", "b/deep/er/x.png", "a/9.gif", "B/0.webp", "a.tif", "c/only.txt")
    (tmp_path / "empty").mkdir()
    found, report = folder(tmp_path)
    # A folder's own files by name, then its folders by name, each completely.
    assert found == [b"a.tif", b"z.jpg", b"B/0.webp", b"a/9.gif", b"b/1.jpg", b"b/2.jpg", b"b/deep/er/x.png"]
    assert report.skipped == Counter({".txt": 1})
    assert report.errors == []


def test_symlinks(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "real/1.jpg")
    touch(tmp_path, "other/2.jpg")
    (root / "file.jpg").symlink_to("real/1.jpg")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "up").symlink_to("..")
    (root / "real" / "self").symlink_to(".")
    (root / "folder.jpg").symlink_to("../other")
    found, report = folder(root)
    assert found == [b"dangling.jpg", b"file.jpg", b"loop.jpg", b"real/1.jpg"]
    assert report.skipped == Counter({"symlinked folder": 3})
    assert report.errors == []


def test_the_root_itself_may_be_a_symlink(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert folder(tmp_path / "link")[0] == [b"1.jpg"]


ODD = [
    b"new\nline.jpg",
    b"caf\xe9.JPG",
    b"100%.png",
    b"%41.jpg",
    b"-rf.jpg",
    b".hidden.jpg",
    b" space .jpg",
    b"\xed\xb2\x80.jpg",
    "ä😀.jpeg".encode(),
    b"a;$(x)'\".jpg",
    b"\r.jpg",
]


def test_odd_names(tmp_path: Path) -> None:
    touch(tmp_path, *ODD, *(b"sub\xff%/" + name for name in ODD))
    found, report = folder(tmp_path)
    assert found == sorted(ODD) + [b"sub\xff%/" + name for name in sorted(ODD)]
    assert not report.skipped
    assert not report.errors


def test_what_is_no_image_by_name_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "b.txt",
        "c.TXT",
        "d.json",
        "README",
        ".jpg",
        "jpg",
        "e.jpg.bak",
        "._a.jpg",
        "sub/._b.png",
        "e.JPG",
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # socket paths are short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
    found, report = folder(tmp_path)
    assert found == [b"a.jpg", b"e.JPG"]
    assert report.skipped == Counter(
        {".txt": 2, ".json": 1, "no suffix": 3, ".bak": 1, "AppleDouble file": 2, "special file": 2}
    )
    found, report = folder(tmp_path, every_file=True)
    assert found == sorted(
        [b"a.jpg", b"b.txt", b"c.TXT", b"d.json", b"README", b".jpg", b"jpg", b"e.jpg.bak", b"e.JPG"]
    )
    assert report.skipped == Counter({"AppleDouble file": 2, "special file": 2})


def test_undecodable_suffixes_are_countable(tmp_path: Path) -> None:
    touch(tmp_path, b"a.\xff")
    assert folder(tmp_path)[1].skipped == Counter({".%FF": 1})


def test_every_known_suffix(tmp_path: Path) -> None:
    suffixes = [
        "apng",
        "avif",
        "avifs",
        "bmp",
        "dib",
        "gif",
        "jfif",
        "jpe",
        "jpeg",
        "jpg",
        "mpo",
        "png",
        "tif",
        "tiff",
        "webp",
    ]
    names = [f"a.{suffix}" for suffix in suffixes]
    touch(tmp_path, *names)
    assert folder(tmp_path)[0] == [name.encode() for name in names]


def test_folders_that_cannot_be_listed_are_reported() -> None:
    with open_folder() as root:
        touch(root, "a/1.jpg", "b/2.jpg", "c/3.jpg", b"p%\xff/4.jpg")
        (root / "b").chmod(0)
        (root / os.fsdecode(b"p%\xff")).chmod(0)
        try:
            lines = without_privileges(
                "from pathlib import Path; from mcip_qdrant.source import FolderSource, ListingReport",
                """
                report = ListingReport()
                for ref in FolderSource("s", Path(sys.argv[1]))(report):
                    print(ref.key)
                for error in report.errors:
                    print("error", error)
                """,
                str(root),
            )
        finally:
            (root / "b").chmod(0o755)
    # The list goes on after a folder that it cannot enter.
    assert lines == [
        "s/a/1.jpg",
        "s/c/3.jpg",
        f"error {root}/b: Permission denied",
        f"error {root}/p%25%FF: Permission denied",
    ]


def test_a_folder_that_vanishes_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "sub/2.jpg")
    report = ListingReport()
    refs = FolderSource("s", tmp_path)(report)
    assert next(refs).relative == "1.jpg"
    (tmp_path / "sub" / "2.jpg").unlink()
    (tmp_path / "sub").rmdir()
    assert list(refs) == []
    assert report.errors == [f"{tmp_path}/sub: No such file or directory"]


@pytest.mark.parametrize(
    ("data", "separator", "expected"),
    [
        (b"", b"\n", []),
        (b"\n\n", b"\n", []),
        (b"a.jpg", b"\n", [b"a.jpg"]),
        (b"a.jpg\nb.jpg\n", b"\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", b"\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\r\nb.jpg\r", b"\n", [b"a.jpg", b"b.jpg"]),
        (b"z.jpg\na.jpg\nz.jpg\n./z.jpg\nx/../z.jpg\n", b"\n", [b"z.jpg", b"a.jpg"]),
        (b" a .jpg \n-x\n%41\n\xff\n", b"\n", [b" a .jpg ", b"-x", b"%41", b"\xff"]),
        (b"a\nb.jpg\0c\r\0d.jpg", b"\0", [b"a\nb.jpg", b"c\r", b"d.jpg"]),
        (b"\0\0a\0", b"\0", [b"a"]),
        (b"sub//x.jpg\nsub/./y.jpg\n", b"\n", [b"sub/x.jpg", b"sub/y.jpg"]),
    ],
)
def test_lists(tmp_path: Path, data: bytes, separator: bytes, expected: list[bytes]) -> None:
    found, report = from_list(tmp_path, data, separator)
    assert found == expected
    assert report == ListingReport()


def test_lists_with_absolute_paths_and_paths_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    inside, outside = os.fsencode(root), os.fsencode(tmp_path)
    data = [
        inside + b"/sub/a.jpg",
        b"../b.jpg",
        b"c/../../d.jpg",
        b"..",
        outside + b"/rootless.jpg",
        b"/etc/passwd",
        inside + b"/../e.jpg",
        b"..f.jpg",
        inside,
        b"g.jpg",
    ]
    found, report = from_list(root, b"\n".join(data))
    assert found == [b"sub/a.jpg", b"..f.jpg", b"g.jpg"]
    refused = [line.split(": not below ")[0] for line in report.errors]
    assert refused == [data[index].decode() for index in (1, 2, 3, 4, 5, 6, 8)]
    assert all(line.endswith(f": not below {root}") for line in report.errors)


def test_a_list_below_the_file_system_root() -> None:
    found, report = from_list(Path("/"), b"a.jpg\n/b/c.jpg\n../d.jpg\n//e.jpg\n")
    assert found == [b"a.jpg", b"b/c.jpg", b"d.jpg", b"e.jpg"]
    assert report.errors == []


def test_nul_inside_a_line_is_a_listing_error(tmp_path: Path) -> None:
    found, report = from_list(tmp_path, b"a.jpg\0/../x\nb.jpg\n\0\n")
    assert found == [b"b.jpg"]
    assert len(report.errors) == 2
    assert report.errors[0].startswith("a.jpg?/../x: ")
    assert not any("\0" in error for error in report.errors)


def test_a_list_may_not_vouch_for_what_is_gone(tmp_path: Path) -> None:
    assert FolderSource("s", tmp_path).complete is True
    assert ListSource("s", tmp_path, io.BytesIO()).complete is False


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time, as pipes and sockets do."""

    def __init__(self, data: bytes, sizes: Callable[[], int]) -> None:
        self._data, self._sizes = io.BytesIO(data), sizes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._sizes()))


@given(st.lists(st.text("ab\r\n é", max_size=5).map(str.encode)), st.booleans(), st.data())
def test_lists_are_split_the_same_however_they_arrive(names: list[bytes], ends: bool, data: st.DataObject) -> None:
    text = b"\0".join(names) + (b"\0" if ends else b"")
    stream = Trickle(text, lambda: data.draw(st.integers(1, 4)))
    found, report = listed(ListSource("s", Path("/r"), stream, b"\0"))  # type: ignore[arg-type]
    assert found == list(dict.fromkeys(name for name in names if name))
    assert not report.errors


def test_a_list_longer_than_one_read(tmp_path: Path) -> None:
    names = [b"folder/%06d.jpg" % number for number in range(20_000)]
    assert from_list(tmp_path, b"\n".join(names))[0] == names


def test_the_first_line_is_passed_on_while_the_pipe_is_still_open(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    got: list[str] = []
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as pipe:
        refs = ListSource("s", tmp_path, stream)(ListingReport())
        pipe.write(b"a.jpg\nb.jpg\nhal")
        first = threading.Thread(target=lambda: got.extend((next(refs).relative, next(refs).relative)), daemon=True)
        first.start()
        first.join(5)
        early = list(got)
        pipe.write(b"f.jpg\n")
        pipe.close()
        first.join(5)
        assert early == ["a.jpg", "b.jpg"]
        assert [ref.relative for ref in refs] == ["half.jpg"]


def test_check_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert check_root(Path("sub")) == tmp_path / "sub"
    with pytest.raises(SourceError, match=r"not a folder.*--list"):
        check_root(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match="does not exist"):
        check_root(tmp_path / "none")
    with pytest.raises(SourceError, match="cannot be read: Not a directory"):
        check_root(tmp_path / "a.jpg" / "x")


def test_check_root_without_permission() -> None:
    with open_folder() as root:
        (root / "closed").mkdir(mode=0o700)
        (root / "closed").chmod(0)
        lines = without_privileges(
            "from pathlib import Path; from mcip_qdrant.source import check_root; from mcip_qdrant.errors import SourceError",
            """
            try:
                check_root(Path(sys.argv[1]))
            except SourceError as exc:
                print(exc)
            """,
            str(root / "closed"),
        )
        (root / "closed").chmod(0o700)
    assert lines == [f"{root}/closed cannot be read: Permission denied"]


def test_a_list_may_spell_the_root_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "link").symlink_to("real")
    stream = io.BytesIO(f"{tmp_path}/link/a.jpg\n{tmp_path}/elsewhere/b.jpg\n".encode())
    report = ListingReport()
    source = ListSource("s", tmp_path / "real", stream)
    assert [ref.relative for ref in source(report)] == ["a.jpg"]
    assert len(report.errors) == 1


def test_what_is_apart_is_neither_listed_nor_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "qdrant/meta.json", "qdrant/b.jpg", "sub/qdrant/c.jpg", "notes.txt", "failures.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    apart = {os.fsencode(tmp_path / name) for name in ("qdrant", "failures.jsonl")}
    refs, report = listed(FolderSource("s", tmp_path, apart=apart.__contains__))
    assert refs == [b"a.jpg", b"sub/qdrant/c.jpg"]
    assert report.skipped == {".txt": 1}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    stream = io.BytesIO(b"\xef\xbb\xbfa.jpg\r\n\xef\xbb\xbfb.jpg\n")
    refs, _ = listed(ListSource("s", tmp_path, stream))
    assert refs == [b"a.jpg", b"\xef\xbb\xbfb.jpg"]
    refs, _ = listed(ListSource("s", tmp_path, io.BytesIO(b"\xef\xbb\xbfa.jpg\0"), b"\0"))
    assert refs == [b"\xef\xbb\xbfa.jpg"]
