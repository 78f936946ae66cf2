"""How near predicted numbers are to the expected ones, and how well they rank."""

import warnings
from collections.abc import Sequence

import numpy as np

from stemma.errors import InputError


def score_numbers(predicted: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    """Return the correlations "pearson" and "spearman" (ranks, the mean for ties), and "rmse".

    Where predictions or expected numbers are all the same no correlation is defined: both are 0, with a UserWarning.

    Raises:
        InputError: not as many predictions as examples, or none; a number that is not finite; no scipy.
    """
    if not len(expected) or len(predicted) != len(expected):
        raise InputError(f"{len(predicted)} predictions for {len(expected)} examples; expected one for each")
    given, right = _finite(predicted, "prediction"), _finite(expected, "expected number")
    try:
        from scipy.stats import pearsonr, spearmanr
    except ImportError:
        raise InputError('correlations need scipy: pip install "stemma-lm[evaluation]"') from None
    rmse = float(np.sqrt(np.mean((given - right) ** 2)))
    for array, what in ((given, "predictions"), (right, "expected numbers")):
        if (array == array[0]).all():
            warnings.warn(
                f"all {what} are {array[0]:.6g}: no correlation is defined, pearson and spearman are given as 0",
                UserWarning,
                stacklevel=2,
            )
            return {"pearson": 0.0, "spearman": 0.0, "rmse": rmse}
    return {
        "pearson": float(pearsonr(given, right).statistic),
        "spearman": float(spearmanr(given, right).statistic),
        "rmse": rmse,
    }


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    """Return the values as float64 [examples]."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise InputError(f"{what}s of shape {list(array.shape)}; expected a number an example")
    if not np.isfinite(array).all():
        number = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{what} {number + 1} is {array[number]}; expected a finite number")
    return array
