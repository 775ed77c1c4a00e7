"""Scaling, norms and nearest rows of NumPy arrays, on all cores, with the interpreter released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from . import _native

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def _floats(x: npt.ArrayLike) -> tuple[Floats, bool]:
    """Return x as an array of float32 or float64 that lies row by row, and whether that is a copy nobody else has.

    Without a copy where that is so already, also of what only looks like an array: the memory is the caller's then.
    """
    import numpy as np

    if type(x) is np.ndarray and x.flags.c_contiguous and x.dtype.char in "fd" and x.dtype.isnative:
        return x, False
    array = np.asarray(x)
    kept = array.dtype in (np.float32, np.float64) and array.dtype.isnative
    rows = np.ascontiguousarray(array, array.dtype if kept else np.float64)
    return rows, isinstance(x, (list, tuple)) or not np.may_share_memory(rows, array)


def _columns(x: Floats) -> int:
    """Return the elements of a row; a vector is one column."""
    if x.ndim == 1:
        return 1
    if x.ndim == 2:
        return int(x.shape[1])
    raise ValueError(f"x has shape {x.shape}, expected rows × columns or one column; reshape it")


class _Scaler:
    """What both scalers do once they are fitted."""

    _native: Any = None
    _width = 0
    _threads: int | None

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = threads

    def fit(self, x: npt.ArrayLike) -> Self:
        """Go over x once and remember what is needed to scale it. NaN is left out; infinity is an `IngestError`."""
        self._fit(_floats(x)[0])
        return self

    def _fit(self, x: Floats) -> None:
        raise NotImplementedError

    def transform(self, x: npt.ArrayLike, out: Floats | None = None) -> Floats:
        """Scale x.

        Args:
            x: rows × columns, or a vector for one column. float32 and float64 are worked on as they are, other types and
                arrays that do not lie row by row are copied to float64 first.
            out: where to write, of the shape and type of x; x itself to scale in place, a loan's view to fill a slot.

        Returns:
            out, or a new array.
        """
        return self._transform(*_floats(x), out)

    def _transform(self, rows: Floats, ours: bool, out: Floats | None) -> Floats:  # noqa: FBT001  of two arguments
        import numpy as np

        if self._native is None:
            raise ValueError("this scaler is not fitted; call fit first")
        columns = _columns(rows)
        if columns != self._width:
            raise ValueError(f"x has {columns} columns, the scaler was fitted to {self._width}; pass such rows")
        if out is None:
            # What was copied anyway is written over.
            out = rows if ours else np.empty_like(rows)
        self._native.transform(rows, out, self._threads)
        return out

    def fit_transform(self, x: npt.ArrayLike, out: Floats | None = None) -> Floats:
        """Fit to x, then scale it."""
        rows, ours = _floats(x)
        self._fit(rows)
        return self._transform(rows, ours, out)


class StandardScaler(_Scaler):
    """Scales every column to mean 0 and variance 1, as scikit-learn's class of this name does.

    Shared between threads freely once it is fitted.
    """

    _found: tuple[list[float], list[float], list[float], list[float]]

    def _fit(self, x: Floats) -> None:
        columns = _columns(x)
        self._found = _native.standard_fit(x, columns, self._threads)
        _, mean, _, scale = self._found
        self._native, self._width = _native._StandardScaler(mean, scale), columns

    @property
    def n_samples_seen_(self) -> npt.NDArray[np.int64]:
        """Numbers in each column that are not NaN."""
        import numpy as np

        return np.array(self._found[0]).astype(np.int64)

    @property
    def mean_(self) -> npt.NDArray[np.float64]:
        """Mean of each column."""
        import numpy as np

        return np.array(self._found[1])

    @property
    def var_(self) -> npt.NDArray[np.float64]:
        """Variance of each column, of the population."""
        import numpy as np

        return np.array(self._found[2])

    @property
    def scale_(self) -> npt.NDArray[np.float64]:
        """What each column is divided by: the root of the variance; 1 for a column of one value."""
        import numpy as np

        return np.array(self._found[3])


class MinMaxScaler(_Scaler):
    """Scales every column into a range, as scikit-learn's class of this name does.

    Shared between threads freely once it is fitted.
    """

    _found: tuple[list[float], list[float]]
    _dtype: np.dtype[Any]

    def __init__(self, feature_range: tuple[float, float] = (0.0, 1.0), *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self.feature_range = feature_range

    def _fit(self, x: Floats) -> None:
        columns = _columns(x)
        self._found, self._dtype = _native.minmax_fit(x, columns, self._threads), x.dtype
        low, high = self._found
        self._native, self._width = _native._MinMaxScaler(low, high, self.feature_range), columns

    def _part(self, which: int) -> Floats:
        import numpy as np

        return np.array(self._native.parts(self._dtype == np.float64)[which], self._dtype)

    @property
    def data_min_(self) -> Floats:
        """Smallest number of each column."""
        import numpy as np

        return np.array(self._found[0], self._dtype)

    @property
    def data_max_(self) -> Floats:
        """Largest number of each column."""
        import numpy as np

        return np.array(self._found[1], self._dtype)

    @property
    def scale_(self) -> Floats:
        """What each column is multiplied by."""
        return self._part(0)

    @property
    def min_(self) -> Floats:
        """What is then added to it."""
        return self._part(1)


def scale(
    x: npt.ArrayLike,
    method: Literal["standard", "minmax"] = "standard",
    *,
    feature_range: tuple[float, float] = (0.0, 1.0),
    out: Floats | None = None,
    threads: int | None = None,
) -> Floats:
    """Scale each column of x by what is in it: to mean 0 and variance 1, or into a range.

    Args:
        x: rows × columns, or a vector for one column.
        method: ``"standard"`` or ``"minmax"``.
        feature_range: where to, for ``"minmax"``.
        out: where to write; x itself to scale in place.
        threads: how many threads; None for one a core, 1 for the calling thread.

    Raises:
        IngestError: a number is infinite; `index` is its row.
    """
    import numpy as np

    rows, ours = _floats(x)
    if out is None:
        out = rows if ours else np.empty_like(rows)
    if method == "standard":
        _native.standard_scale(rows, out, _columns(rows), threads)
    elif method == "minmax":
        _native.minmax_scale(rows, out, _columns(rows), feature_range, threads)
    else:
        raise ValueError(f'method is {method!r}, expected "standard" or "minmax"')
    return out


def l2_normalize(x: npt.ArrayLike, *, out: Floats | None = None, threads: int | None = None) -> Floats:
    """Divide each row of x by its Euclidean length; a row of zeros stays one.

    Args:
        x: rows × columns, or a vector, which is one row.
        out: where to write; x itself to do it in place.
        threads: how many threads; None for one a core, 1 for the calling thread.

    Raises:
        IngestError: a row holds NaN or infinity; `index` is its number.
    """
    import numpy as np

    rows, ours = _floats(x)
    columns = int(rows.shape[-1]) if rows.ndim in (1, 2) else _columns(rows)
    if out is None:
        out = rows if ours else rows.copy()
    elif out is not x:
        np.copyto(out, rows, casting="no")
    if columns:
        _native.l2_normalize(out, columns, threads)
    return out


def top_k(
    matrix: npt.NDArray[np.float32],
    query: npt.ArrayLike,
    k: int,
    metric: Literal["dot", "cosine"] = "dot",
    *,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the k rows of matrix nearest to each query, exactly, without an array of all scores.

    Args:
        matrix: float32, rows × columns, lying row by row; it is not copied, so it has to be so already.
        query: one vector, or queries × columns; converted to float32.
        k: how many rows; fewer come back if matrix has fewer.
        metric: ``"dot"``, or ``"cosine"``, which is 0 if a length is 0.
        threads: how many threads; None for one a core, 1 for the calling thread.

    Returns:
        Numbers of the rows (int64) and their scores (float32), nearest first, each of shape (k,) or (queries, k). Equal
        scores are in the order of the rows; NaN comes last.
    """
    import numpy as np

    if type(query) is not np.ndarray or query.dtype != np.float32 or not query.flags.c_contiguous:
        query = np.ascontiguousarray(query, np.float32)
    if k < 0:
        raise ValueError(f"k is {k}, expected at least 0")
    shape = (*query.shape[:-1], min(k, len(matrix)))
    indices, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    _native.top_k(matrix, query, metric, indices, scores, threads)
    return indices, scores
