"""JSON lines and Python objects as features, dense and sparse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from . import _native

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

_I32_MAX = 2**31 - 1


class SparseRows(NamedTuple):
    """Compressed sparse rows, as ``scipy.sparse.csr_matrix((values, indices, indptr), shape)`` takes them."""

    values: npt.NDArray[Any]
    """Of each element that is stored."""
    indices: npt.NDArray[Any]
    """Column of each of them; columns grow within a row."""
    indptr: npt.NDArray[Any]
    """Where each row starts, and where the last one ends."""
    shape: tuple[int, int]
    """Rows and columns."""

    def scipy(self) -> Any:
        """Return a ``scipy.sparse.csr_matrix`` over these arrays, without a copy."""
        from scipy.sparse import csr_matrix  # type: ignore[import-untyped,unused-ignore]

        matrix = csr_matrix((self.values, self.indices, self.indptr), shape=self.shape)
        # Known, and dear to find out.
        matrix.has_canonical_format = True
        return matrix


class FeatureHasher:
    """Hashes names into columns: the same columns, signs and values as scikit-learn's class of this name.

    Args:
        n_features: number of columns, 1 to 2³¹ - 1.
        input_type: what a sample is: a ``"dict"`` of names and values, an iterable of ``"pair"``s of them, or an
            iterable of ``"string"``s, each worth 1. A value that is a str makes the name ``name=value``, worth 1.
        alternate_sign: whether half of the names count negative.
        dtype: float64 or float32.
        threads: how many threads sort; None for one a core, 1 for the calling thread.
    """

    def __init__(
        self,
        n_features: int = 2**20,
        *,
        input_type: Literal["dict", "pair", "string"] = "dict",
        alternate_sign: bool = True,
        dtype: npt.DTypeLike = "float64",
        threads: int | None = None,
    ) -> None:
        import numpy as np

        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {self.dtype}, expected float32 or float64; convert the result with .astype")
        self.n_features = n_features
        self._threads = threads
        self._native = _native._FeatureHasher(n_features, input_type, alternate_sign, self.dtype == np.float32)

    def transform_parts(self, samples: Iterable[Any]) -> SparseRows:
        """Hash samples into rows, as bare arrays.

        Raises:
            IngestError: a sample is not what input_type says, or a value is not finite; `index` is its place.
        """
        import numpy as np

        rows = self._native.transform(samples, self._threads)
        index = np.int32 if rows.entries <= _I32_MAX else np.int64
        parts = SparseRows(
            np.empty(rows.entries, self.dtype),
            np.empty(rows.entries, index),
            np.empty(rows.rows + 1, index),
            (rows.rows, self.n_features),
        )
        rows.write_into(parts.indptr, parts.indices, parts.values)
        return parts

    def transform(self, samples: Iterable[Any]) -> Any:
        """Hash samples into rows.

        Returns:
            A ``scipy.sparse.csr_matrix`` if scipy is installed, else the `SparseRows` of `transform_parts`.

        Raises:
            IngestError: as `transform_parts`.
        """
        parts = self.transform_parts(samples)
        try:
            return parts.scipy()
        except ModuleNotFoundError:
            return parts

    def fit(self, samples: Any = None, y: Any = None) -> Self:  # noqa: ARG002 - pipelines call it with both
        """Do nothing: there is nothing to learn."""
        return self

    fit_transform = transform


class TableBatch:
    """Rows that a `TableEncoder` made, ready to be written."""

    def __init__(self, native: _native._TableBatch, encoder: TableEncoder) -> None:
        self._native = native
        self._encoder = encoder

    def __len__(self) -> int:
        return self._native.rows

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Index and reason of each line that was left out."""
        return self._native.errors

    @property
    def items(self) -> npt.NDArray[np.int64]:
        """Index of the line that each row was made of."""
        import numpy as np

        return np.array(self._native.items, np.int64)

    @property
    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array, as ``producer.loan`` takes them.

        A dense tensor is one array of its name; a sparse one is three, ``name.indptr``, ``name.indices`` and
        ``name.values``.
        """
        return {name: (dtype, tuple(shape)) for name, dtype, shape in self._native.fields}

    def write_into(self, arrays: Mapping[str, Any]) -> None:
        """Write every tensor into the array of its name, see `fields`: NumPy arrays, or ``loan[name].numpy()``."""
        self._native.write_into(arrays)

    def arrays(self) -> dict[str, npt.NDArray[Any] | SparseRows]:
        """Return every tensor: an array for a dense one, `SparseRows` for a sparse one."""
        import numpy as np

        flat = {name: np.empty(shape, dtype) for name, (dtype, shape) in self.fields.items()}
        self._native.write_into(flat)
        made: dict[str, npt.NDArray[Any] | SparseRows] = {}
        for name, _, indices, columns in self._encoder.tensors:
            if indices is None:
                made[name] = flat[name]
            else:
                values, numbers, offsets = (flat[f"{name}.{part}"] for part in ("values", "indices", "indptr"))
                made[name] = SparseRows(values, numbers, offsets, (len(self), columns))
        return made


class TableEncoder:
    """Turns JSON lines into tensors of features, as a schema says. Shared between threads freely."""

    def __init__(self, native: _native._TableEncoder) -> None:
        self._native = native

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, max_line_bytes: int | None = None, max_batch_bytes: int | None = None
    ) -> Self:
        """Read a schema from a ``.toml`` or ``.json`` file.

        Args:
            path: the file.
            max_line_bytes: longest line; 1 MiB if None.
            max_batch_bytes: most memory of dense rows in a batch; 1 GiB if None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no schema, or one that contradicts itself.
        """
        return cls(_native._TableEncoder(os.fspath(path), None, max_line_bytes, max_batch_bytes))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, max_line_bytes: int | None = None, max_batch_bytes: int | None = None
    ) -> Self:
        """Take a schema as a dict of what a file would hold, else as `from_file`."""
        return cls(_native._TableEncoder(None, json.dumps(config, default=dict), max_line_bytes, max_batch_bytes))

    @property
    def tensors(self) -> list[tuple[str, str, str | None, int]]:
        """Name, type, type of the indices (None if it is dense) and number of columns of each tensor."""
        return self._native.tensors

    def encode(
        self,
        lines: Buffer | Iterable[bytes | str],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        threads: int | None = None,
    ) -> TableBatch:
        """Encode lines with the interpreter released.

        Args:
            lines: one buffer (bytes, a memory map) that is cut at its line ends, or lines without them. What is written
                into a buffer meanwhile may or may not count.
            on_error: ``"raise"`` for the first line that cannot be encoded, ``"skip"`` leaves such lines out and lists
                them in `TableBatch.errors`.
            threads: how many threads; None for one a core, 1 for the calling thread.

        Raises:
            IngestError: a line cannot be encoded; `index` is its place.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}, expected "raise" or "skip"')
        return TableBatch(self._native.encode(lines, on_error == "skip", threads), self)
