import os

import pytest

from torch_softmax._atomic_file import write_atomically


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_file_keeps_the_old_content_if_a_write_fails(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_atomic_file_moves_the_old_content_aside(tmp_path):
    path, previous = tmp_path / "new", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, content, previous)
    assert path.read_bytes() == b"3" and previous.read_bytes() == b"2"
    assert set(tmp_path.iterdir()) == {path, previous}


def test_atomic_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, f=function, n=name: (calls.append(n), f(*args))[1]
        )
    write_atomically(tmp_path / "file", b"new")
    # the folder is synchronized too
    assert calls == ["fsync", "replace", "fsync"]


def test_atomic_file_never_shows_a_reader_half_of_it(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
