"""Memory that a step has freed is there for the next one."""

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from thaw.allocator import keep_freed_memory

# Steps that take three blocks of 40 MB and free them; prints how many pages the system has given to the last of ten:
# it takes some until the blocks lie as they stay.
STEPS = """
import resource, sys
from thaw import command

def step():
    import torch
    return [torch.ones(10_000_000) for _ in range(3)]

def task():
    for _ in range(9):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

sys.argv = ["train.py"]
command.main(task)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_of_a_command_is_given_no_page_that_the_one_before_has_freed() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 29,297 pages of 4 kB


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or SimpleNamespace())
    keep_freed_memory()
    assert asked == [None]


@pytest.mark.parametrize(("most", "taken"), [(2**31, 2**30), (2**25, 2**25)], ids=["glibc 2.35", "before"])
def test_blocks_stay_as_large_as_the_library_lets_them(monkeypatch: pytest.MonkeyPatch, most: int, taken: int) -> None:
    settings: dict[int, int] = {}

    def mallopt(name: int, value: int) -> int:
        if value > most:
            return 0
        settings[name] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert settings == {-3: taken, -1: -1}
