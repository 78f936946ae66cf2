import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.data.token_arrays import FileArray


def write(folder: Path, sizes: list[int]) -> tuple[FileArray, np.ndarray]:
    whole = np.arange(sum(sizes), dtype="<u2")
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    paths = [folder / f"{index}.bin" for index in range(len(sizes))]
    for path, part in zip(paths, parts, strict=True):
        part.tofile(path)
    return FileArray(paths, "<u2"), whole


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_reads_as_the_files_end_to_end(tmp_path, sizes, data):
    files, whole = write(tmp_path, sizes)
    assert len(files) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    part = files.read(start, stop)
    assert part.dtype == np.dtype("<u2")
    np.testing.assert_array_equal(part, whole[start:stop])
    np.testing.assert_array_equal(files[start:stop], whole[start:stop])
    np.testing.assert_array_equal(np.asarray(files), whole)
    assert [int(number) for number in files] == whole.tolist()
    if len(whole):
        assert files[-1] == whole[-1]


def test_outside_of_the_array(tmp_path):
    files, _ = write(tmp_path, [3, 2])
    for start, stop in (-1, 2), (0, 6), (3, 2):
        with pytest.raises(IndexError):
            files.read(start, stop)


def test_pickles_as_file_names(tmp_path):
    files, whole = write(tmp_path, [10_000, 20_000])
    files.read(0, 30_000)
    data = pickle.dumps(files)
    assert len(data) < 2000
    np.testing.assert_array_equal(np.asarray(pickle.loads(data)), whole)
