"""Compiled code is kept on disk, and where it cannot be it is compiled all the same."""

import numba
import numpy as np
import pytest

from stemma.data.kept_kernels import kept


def twice(numbers: np.ndarray) -> float:
    return 2 * numbers.sum()


@pytest.mark.parametrize("writable", [True, False])
def test_with_and_without_a_folder_that_can_be_written(writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, own = [], numba.njit

    def compile(*arguments: object, **options: object) -> object:
        asked.append(options.get("cache", False))
        if options.get("cache") and not writable:
            raise RuntimeError("cannot cache function 'twice': no locator available")
        return own(*arguments, **options)

    monkeypatch.setattr(numba, "njit", compile)
    assert kept(twice, "float64(float64[::1])")(np.ones(3)) == 6
    assert asked == ([True] if writable else [True, False])
