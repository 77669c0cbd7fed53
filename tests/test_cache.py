"""The cache folder: whole entries under their own key alone, one writer, bounded, cleaned by age."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thaw import cache
from thaw.cache import SEAL, Cache, name_of

KEY = {"weights": "abc", "split": "train", "views": 1}


def filler(content: bytes, calls: list[int] | None = None):
    def fill(folder: Path) -> None:
        if calls is not None:
            calls.append(1)
        (folder / "values.npy").write_bytes(content)

    return fill


def test_an_entry_is_computed_once_and_found_by_another_process_object(tmp_path: Path) -> None:
    calls: list[int] = []
    first = Cache(tmp_path, 1000).entry(KEY, 3, filler(b"abc", calls))
    again = Cache(tmp_path, 1000).entry(dict(reversed(KEY.items())), 3, filler(b"xyz", calls))
    assert first == again
    assert (again / "values.npy").read_bytes() == b"abc"
    assert len(calls) == 1


def test_what_has_just_been_written_is_summed_once_and_again_only_by_who_finds_it(tmp_path: Path, monkeypatch) -> None:
    summed, digest = [], cache._digest
    monkeypatch.setattr(cache, "_digest", lambda path: summed.append(path.name) or digest(path))
    Cache(tmp_path, 1000).entry(KEY, 3, filler(b"abc"))
    assert summed == ["values.npy"]
    Cache(tmp_path, 1000).find(KEY)
    assert summed == ["values.npy"] * 2


def test_another_key_has_another_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    assert cache.entry(KEY, 3, filler(b"abc")) != cache.entry(KEY | {"weights": "abd"}, 3, filler(b"abd"))


def test_a_key_whose_name_is_taken_by_another_is_not_served(tmp_path: Path) -> None:
    path = Cache(tmp_path, 1000).entry(KEY, 3, filler(b"abc"))
    seal = json.loads((path / SEAL).read_text())
    (path / SEAL).write_text(json.dumps(seal | {"key": KEY | {"split": "val"}}))
    assert Cache(tmp_path, 1000).find(KEY) is None


@pytest.mark.parametrize("damage", ["alter", "cut", "remove", "unseal"])
def test_what_is_damaged_is_computed_again(tmp_path: Path, damage: str) -> None:
    path = Cache(tmp_path, 1000).entry(KEY, 3, filler(b"abc"))
    file = path / "values.npy"
    if damage == "alter":
        file.write_bytes(b"abd")
    elif damage == "cut":
        file.write_bytes(b"ab")
    else:
        (file if damage == "remove" else path / SEAL).unlink()
    assert Cache(tmp_path, 1000).find(KEY) is None
    again = Cache(tmp_path, 1000).entry(KEY, 3, filler(b"xyz"))
    assert (again / "values.npy").read_bytes() == b"xyz"


def test_what_broke_off_leaves_nothing(tmp_path: Path) -> None:
    def breaks(folder: Path) -> None:
        (folder / "values.npy").write_bytes(b"a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path, 1000).entry(KEY, 3, breaks)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name_of(KEY)}.lock"]


def test_what_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    calls: list[int] = []
    assert Cache(tmp_path, 2).entry(KEY, 3, filler(b"abc", calls)) is None
    assert Cache(tmp_path, 0).entry(KEY, 0, filler(b"", calls)) is None
    assert not calls


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 700)
    paths = [cache.entry({"number": n}, 300, filler(bytes(200))) for n in range(2)]  # a seal has about 150 bytes
    for path, age in zip(paths, (10, 100), strict=True):
        os.utime(path / SEAL, (time.time() - age,) * 2)
    del cache
    fresh = Cache(tmp_path, 700)
    third = fresh.entry({"number": 2}, 300, filler(bytes(200)))
    assert third.is_dir()
    assert [path.is_dir() for path in paths] == [True, False]


def test_what_nobody_has_used_for_a_month_goes(tmp_path: Path) -> None:
    old = Cache(tmp_path, 10_000).entry({"number": 0}, 3, filler(b"abc"))
    os.utime(old / SEAL, (time.time() - 31 * 86400,) * 2)
    Cache(tmp_path, 10_000).entry(KEY, 3, filler(b"abc"))
    assert not old.exists()


@pytest.mark.parametrize("left", [f".{{name}}.{'0' * 32}.tmp", "{name}"])
def test_what_a_killed_process_has_left_goes_unless_another_is_at_it(tmp_path: Path, left: str) -> None:
    place = tmp_path / left.format(name=name_of({"number": 0}))
    place.mkdir()
    (place / "values.npy").write_bytes(bytes(100))
    others = [tmp_path / name for name in ("photographs", ".git", f"{'0' * 24}.old", f".{'0' * 24}.tmp")]
    for folder in others:  # of a user who keeps the cache among them
        folder.mkdir()
        (folder / "own.txt").write_bytes(bytes(20_000))
    held = Cache(tmp_path, 10_000)
    lock = held._open(name_of({"number": 0}))
    fcntl.flock(lock, fcntl.LOCK_EX)
    held.entry(KEY, 3, filler(b"abc"))
    assert place.is_dir()
    os.close(lock)
    held.entry(KEY | {"views": 2}, 3, filler(b"abc"))
    assert not place.exists()
    assert held.find(KEY).is_dir()
    assert all((folder / "own.txt").exists() for folder in others)


def test_an_entry_of_another_user_is_read(tmp_path: Path, monkeypatch) -> None:
    path = Cache(tmp_path, 1000).entry(KEY, 3, filler(b"abc"))
    opened = os.open

    def refused(place: Path, flags: int, *mode: int, **named: int) -> int:
        if str(place).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(place)
        return opened(place, flags, *mode, **named)

    monkeypatch.setattr(cache.os, "open", refused)
    assert Cache(tmp_path, 1000).find(KEY) == path


def in_another_process(folder: Path, body: str, *words: str) -> subprocess.Popen:
    text = (
        f"from pathlib import Path\nimport sys, time\nfrom thaw.cache import Cache\nfolder = Path(sys.argv[1])\n{body}"
    )
    return subprocess.Popen([sys.executable, "-c", text, str(folder), *words], stdout=subprocess.PIPE, text=True)


def test_an_entry_in_use_by_another_process_stays(tmp_path: Path) -> None:
    held = in_another_process(
        tmp_path,
        "cache = Cache(folder, 700)\n"
        "print(cache.entry({'number': 0}, 300, lambda f: (f / 'v').write_bytes(bytes(200))), flush=True)\n"
        "time.sleep(60)",
    )
    path = Path(held.stdout.readline().strip())
    held.stdout.close()
    try:
        os.utime(path / SEAL, (time.time() - 40 * 86400,) * 2)
        assert Cache(tmp_path, 700).entry(KEY, 600, filler(bytes(500))) is None  # and the bound holds
        assert path.is_dir()
    finally:
        held.kill()
        held.wait()
    Cache(tmp_path, 700).entry(KEY | {"views": 2}, 600, filler(bytes(500)))
    assert not path.exists()


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    body = (
        "def fill(path):\n"
        "    (folder / ('filled-' + sys.argv[2])).touch(); time.sleep(1); (path / 'v').write_text(sys.argv[2])\n"
        "print((Cache(folder, 1000).entry({'a': 1}, 1, fill) / 'v').read_text())"
    )
    processes = [in_another_process(tmp_path, body, str(number)) for number in range(3)]
    read = {process.communicate(timeout=60)[0] for process in processes}
    assert len(read) == 1
    assert len(list(tmp_path.glob("filled-*"))) == 1


@pytest.mark.medium
def test_what_was_discarded_is_served_to_nobody_though_another_has_it_open(tmp_path: Path) -> None:
    holder, other = Cache(tmp_path, 1000), Cache(tmp_path, 1000)
    holder.entry(KEY, 3, filler(b"abc"))
    other.discard(KEY)
    assert other.find(KEY) is None
    assert other.entry(KEY, 3, filler(b"xyz")) is None
    del holder
    assert (other.entry(KEY, 3, filler(b"xyz")) / "values.npy").read_bytes() == b"xyz"


def test_a_folder_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Cache(tmp_path / "file" / "cache", 1000).entry(KEY, 3, filler(b"abc")) is None
