from pathlib import Path

import pytest

from fastcifar.errors import FastcifarError
from fastcifar.files import read_json, replacing, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"


def test_a_failure_keeps_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("one")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_half_folder(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with replacing(tmp_path / "x") as temporary:
            temporary.mkdir()
            (temporary / "half").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x"
    with pytest.raises(FastcifarError, match=rf"cannot write {path}: a file with this name exists"):
        write_json(path, {})


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None]}
    with pytest.raises(FastcifarError, match=r"cannot read .*y\.json: No such file"):
        read_json(tmp_path / "y.json")
    (tmp_path / "z.json").write_text("[" * 100_000)
    with pytest.raises(FastcifarError, match=r"z\.json is damaged: it is not valid JSON"):
        read_json(tmp_path / "z.json")
