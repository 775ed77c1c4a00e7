from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import numpy.typing as npt
from typing_extensions import Buffer

# An array is a buffer; type checkers know it from Python 3.12 on.
_Array: TypeAlias = Buffer | npt.NDArray[Any]

@final
class Tokenizer:
    @staticmethod
    def from_file(
        path: str,
        *,
        max_length: int | None = None,
        width: str | int | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        pad_side: str | None = None,
        add_special_tokens: bool = True,
    ) -> Tokenizer: ...
    def tokenize(self, texts: list[str]) -> Tokens: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

@final
class Tokens:
    """A batch of texts as token ids, not padded yet."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the padded batch."""
    @property
    def token_count(self) -> int:
        """Tokens without padding."""
    def write_into(self, input_ids: Buffer, attention_mask: Buffer) -> None:
        """Write ids and mask, padded, into two writable int64 buffers of `shape`."""
    def __len__(self) -> int: ...

class IngestError(ValueError):
    """An item that could not be used; `index` is its place among those given, from 0, or None."""

    index: int | None

@final
class _FeatureHasher:
    def __new__(cls, features: int, input: str, alternate_sign: bool, single: bool) -> _FeatureHasher: ...
    def transform(self, samples: Iterable[Any], threads: int | None = None) -> _HashedRows: ...

@final
class _HashedRows:
    @property
    def rows(self) -> int: ...
    @property
    def entries(self) -> int: ...
    def write_into(self, indptr: _Array, indices: _Array, values: _Array) -> None: ...

@final
class _MinMaxScaler:
    def __new__(cls, min: list[float], max: list[float], range: tuple[float, float]) -> _MinMaxScaler: ...
    def parts(self, double: bool) -> tuple[list[float], list[float]]: ...
    def transform(self, x: _Array, out: _Array, threads: int | None = None) -> None: ...

@final
class _StandardScaler:
    def __new__(cls, mean: list[float], scale: list[float]) -> _StandardScaler: ...
    def transform(self, x: _Array, out: _Array, threads: int | None = None) -> None: ...

@final
class _TableBatch:
    @property
    def rows(self) -> int: ...
    @property
    def items(self) -> list[int]: ...
    @property
    def errors(self) -> list[tuple[int, str]]: ...
    @property
    def fields(self) -> list[tuple[str, str, list[int]]]: ...
    def write_into(self, arrays: Mapping[str, _Array]) -> None: ...

@final
class _TableEncoder:
    def __new__(
        cls, path: str | None, json: str | None, max_line_bytes: int | None, max_batch_bytes: int | None
    ) -> _TableEncoder: ...
    @property
    def tensors(self) -> list[tuple[str, str, str | None, int]]: ...
    def encode(self, lines: Buffer | Iterable[bytes | str], skip: bool, threads: int | None = None) -> _TableBatch: ...

def l2_normalize(x: _Array, columns: int, threads: int | None = None) -> None: ...
def minmax_fit(x: _Array, columns: int, threads: int | None = None) -> tuple[list[float], list[float]]: ...
def minmax_scale(
    x: _Array, out: _Array, columns: int, range: tuple[float, float], threads: int | None = None
) -> None: ...
def standard_fit(
    x: _Array, columns: int, threads: int | None = None
) -> tuple[list[float], list[float], list[float], list[float]]: ...
def standard_scale(x: _Array, out: _Array, columns: int, threads: int | None = None) -> None: ...
def top_k(
    matrix: _Array, queries: _Array, metric: str, indices: _Array, scores: _Array, threads: int | None = None
) -> None: ...

@final
class ImageProcessor:
    @staticmethod
    def from_config(
        config: str | None,
        path: str | None,
        *,
        dtype: str,
        layout: str,
        resampling: str,
        transparency: str,
        damaged: str,
        upright: bool,
        max_bytes: int | None,
        max_pixels: int | None,
        max_side: int | None,
    ) -> ImageProcessor: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def pads(self) -> bool: ...
    def plan(self, images: Iterable[Buffer], threads: int | None) -> ImageBatch: ...

@final
class ImageBatch:
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def mask_shape(self) -> tuple[int, int, int]: ...
    def write(self, out: Buffer, mask: Buffer | None, threads: int | None) -> list[tuple[int, str]]: ...
