"""Compiled kernels on disk, as several processes write and read them at the same moment."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import float64, int64
from numba.core.registry import cpu_target

from calib_library import kernels


def twice(x):
    return x + x


@pytest.fixture
def compiled():
    """The same function for two types, compiled without any cache: types → what numba keeps."""
    dispatcher = numba.njit(twice)
    for types in ((int64,), (float64,)):
        dispatcher.compile(types)
    return dict(dispatcher.overloads)


def test_two_processes_that_compile_for_different_types_get_each_its_own(
    compiled, tmp_path, monkeypatch
):
    """The second begins while the first has written its list of signatures and not yet its code."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    one, other = kernels._SharedCache(twice), kernels._SharedCache(twice)
    file = one._cache_file
    write_list, beside = file._save_index, []

    def write_and_let_the_other_come(listed):
        beside.append(
            threading.Thread(target=other.save_overload, args=((float64,), compiled[float64,]))
        )
        beside[0].start()
        # It must wait for the first: this patience only gives it the chance not to.
        beside[0].join(0.5)
        write_list(listed)

    monkeypatch.setattr(file, "_save_index", write_and_let_the_other_come)
    one.save_overload((int64,), compiled[int64,])
    beside[0].join()
    for types in compiled:
        found = kernels._SharedCache(twice).load_overload(types, cpu_target.target_context)
        assert found is not None
        assert found.signature.args == types


def test_a_cache_that_cannot_be_locked_is_used_all_the_same(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def refuse(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(kernels.fcntl, "flock", refuse)
    cache = kernels._SharedCache(twice)
    cache.save_overload((int64,), compiled[int64,])
    assert cache.load_overload((int64,), cpu_target.target_context).signature.args == (int64,)


def test_kernels_are_kept_in_that_cache():
    assert isinstance(kernels.kernel()(twice)._cache, kernels._SharedCache)


MAKES_AN_ARRAY = """
import numpy as np
from calib_library.kernels import kernel

@kernel(allocates=True)
def squares(n):
    found = np.empty(n)
    for i in range(n):
        found[i] = i * i
    return found

print(*squares(4), *(one.stats.cache_hits[one.signatures[0]] for one in [squares]))
"""


def test_a_kernel_that_makes_an_array_does_so_where_nothing_is_compiled(tmp_path):
    """It is loaded with the names of numba's memory manager alone."""
    script = tmp_path / "squares.py"
    script.write_text(MAKES_AN_ARRAY)
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(kernels.__file__).parents[1]),
    }
    told = [
        subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["0.0", "1.0", "4.0", "9.0", "0"], ["0.0", "1.0", "4.0", "9.0", "1"]]


def test_a_kernel_that_makes_an_array_and_does_not_say_so_is_not_compiled():
    def total(image):
        return np.zeros(image.size).sum() + (image + image).sum()

    refused = kernels.kernel()(total)
    refused._cache = numba.core.caching.NullCache()
    with pytest.raises(numba.core.errors.NumbaError, match="array"):
        refused(np.ones(3))


@pytest.mark.parametrize("count", [0, 1, 3, 100])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_parts_side_by_side_are_the_whole_once(count, threads):
    done, before = [], numba.get_num_threads()
    numba.set_num_threads(min(threads, kernels.PROCESSORS))
    try:
        kernels.side_by_side(lambda first, last, out: out.extend(range(first, last)), count, done)
    finally:
        numba.set_num_threads(before)
    assert sorted(done) == list(range(count))


def test_what_the_parts_return_is_in_order():
    parts = kernels.side_by_side(range, 100)
    assert [number for part in parts for number in part] == list(range(100))


def test_each_thread_has_memory_of_its_own():
    made, used = [], []

    def scratch():
        made.append(object())
        return made[-1]

    def work(_first, _last, own, given):
        used.append((threading.get_ident(), own, given))

    kernels.side_by_side(work, 100, "given", scratch=scratch)
    assert {given for *_, given in used} == {"given"}
    by_thread = {thread: own for thread, own, _ in used}
    assert all(by_thread[thread] is own for thread, own, _ in used)
    assert len(set(by_thread.values())) == len(by_thread)
    assert len(made) <= numba.get_num_threads()


@pytest.mark.parametrize("shape", [(1,), (3, 64), (5, 7, 11)])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.float64])
def test_aligned_memory_is_zero_and_begins_with_a_cache_line(shape, dtype):
    made = [kernels.aligned(shape, dtype) for _ in range(10)]
    for one in made:
        assert (one.shape, one.dtype, one.flags.c_contiguous) == (shape, dtype, True)
        assert one.ctypes.data % kernels.CACHE_LINE == 0
        assert not one.any()
        one[:] = 1


@pytest.mark.skipif(numba.get_num_threads() < 2, reason="needs two threads")
def test_others_go_on_where_one_is_held_up():
    begun, done_by_others = threading.Event(), threading.Event()
    others, held = [], []

    def work(first, last):
        if first == 0:
            held.append(last)
            begun.set()
            assert done_by_others.wait(60)
            return
        assert begun.wait(60)
        others.extend(range(first, last))
        if len(others) == 100 - held[0]:
            done_by_others.set()

    kernels.side_by_side(work, 100)
    assert held[0] < 100 // numba.get_num_threads()


@pytest.mark.parametrize("failing", [0, 99])
def test_what_fails_in_one_part_is_raised_after_the_others(failing):
    done = []

    def work(first, last):
        if first <= failing < last:
            raise ValueError("this part")
        done.extend(range(first, last))

    with pytest.raises(ValueError, match="this part"):
        kernels.side_by_side(work, 100)
    missing = sorted({*range(100)} - {*done})
    assert failing in missing
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert len(missing) <= -(-100 // numba.get_num_threads())
