import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

# An array is a buffer; type checkers know it from Python 3.12 on.
_Array: TypeAlias = Buffer | npt.NDArray[Any]

_T = TypeVar("_T")
_Side = Literal["left", "right"]
_Truncation = Literal["longest_first", "only_first", "only_second"]

class IngestError(ValueError):
    """An item that could not be used."""

    index: int | None
    """Its place among those given, from 0."""

# === text ===

@final
class Tokenizer:
    """A tokenizer. Shared between threads freely; encoding releases the interpreter."""

    @staticmethod
    def from_file(
        path: str | os.PathLike[str],
        *,
        max_length: int | None = None,
        width: Literal["longest"] | int | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        pad_side: _Side | None = None,
        truncation_side: _Side | None = None,
        add_special_tokens: bool = True,
        normalize: Literal["NFC", "NFKC"] | None = None,
        special_in_text: bool = True,
    ) -> Tokenizer:
        """Load a tokenizer of Hugging Face.

        Args:
            path: a ``tokenizer.json``, or the folder that holds one.
            max_length: longest row in tokens, special tokens included; by default what the file says.
            width: ``"longest"`` pads to the longest row of the batch, a number to that many columns.
            pad_to_multiple_of: rounds the width up.
            pad_id: what short rows are filled with; by default what the file says.
            pad_side: the side that is filled; by default what the file says.
            truncation_side: the side that loses tokens; by default what the file says.
            add_special_tokens: whether the tokenizer adds its own (``[CLS]``, ``<s>``, …).
            normalize: a Unicode form to bring texts into before the tokenizer's own normalization.
            special_in_text: whether ``"[MASK]"`` in a text is that token; switch it off for texts of others.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a tokenizer, or the options do not fit it.
        """

    @staticmethod
    def from_tiktoken(
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
        max_length: int | None = None,
        width: Literal["longest"] | int | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        pad_side: _Side | None = None,
        truncation_side: _Side | None = None,
        special_in_text: bool = True,
    ) -> Tokenizer:
        """Load a vocabulary in tiktoken's format (a token in base64 and its rank on each line).

        Args:
            path: the ``.tiktoken`` file.
            name: which published vocabulary it is (``"cl100k_base"``, …), which says pattern and special tokens.
            pattern: the regular expression that cuts texts, for others.
            special_tokens: tokens and their ids, for others.

        The rest is as in `from_file`. Ids are those of ``encode(…, allowed_special="all")``, and without
        ``special_in_text`` those of ``encode_ordinary``.
        """

    def encode_batch(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        padding: Literal["longest"] | int | None = None,
        truncation: _Truncation | bool | None = None,
        max_length: int | None = None,
        stride: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool | None = None,
        type_ids: bool | None = None,
        offsets: bool = False,
        ragged: bool = False,
        threads: int | None = None,
        on_error: Literal["raise", "report"] = "raise",
    ) -> Batch:
        """Tokenize into named arrays.

        What is None is as the tokenizer was loaded. Strings are read where they are; arrays own the memory that was
        written, so nothing is copied. Ctrl-C is seen after every 2 MiB of text a thread.

        Args:
            texts: what to tokenize.
            pairs: a second text for each, such as the passage for a question.
            padding: ``"longest"`` or a number of columns.
            truncation: which text of a pair gives way; False for no limit.
            max_length: longest row in tokens, special tokens included.
            stride: what does not fit becomes further rows, each repeating so many tokens; else it is dropped.
            pad_to_multiple_of: rounds the width up.
            add_special_tokens: whether the tokenizer adds its own.
            type_ids: whether there are ``token_type_ids``; by default with pairs.
            offsets: whether there is an ``offset_mapping``, in characters; takes about twice the time.
            ragged: no padding: 1-dimensional ``input_ids`` and ``cu_seqlens`` (int32), as varlen attention takes them.
            threads: threads to work on; 1 is the caller's own, None one a core.
            on_error: ``"report"`` gives a text that is refused an empty row and a place in `Batch.errors`.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 of shape (rows, columns), and what else was asked for.

        Raises:
            IngestError: a text is no str or is refused; its ``index`` says which.
            ValueError: the options do not fit.
        """

    def encode_planned(
        self,
        texts: Iterable[str],
        *,
        max_rows: int = 32,
        max_tokens: int | None = None,
        keep_order: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        offsets: bool = False,
        ragged: bool = False,
        threads: int | None = None,
    ) -> list[Batch]:
        """Tokenize into several batches that waste little: texts of like length together, longest first.

        Args:
            texts: all of them; `Batch.item_of_row` says which text a row is.
            max_rows: rows of a batch at most.
            max_tokens: padded tokens of a batch at most; a longer row has a batch of its own.
            keep_order: batches are runs of the texts as they came.

        The rest is as in `encode_batch`.
        """

    def tokenize(self, texts: Iterable[str], pairs: Iterable[str] | None = None, *, threads: int | None = 1) -> Tokens:
        """Tokenize without padding: its ``shape`` says what to loan, `Tokens.write_into` writes there.

        >>> tokens = tokenizer.tokenize(texts)
        >>> loan = producer.loan({name: ("int64", tokens.shape) for name in ("input_ids", "attention_mask")})
        >>> tokens.write_into(loan["input_ids"].numpy(), loan["attention_mask"].numpy())
        >>> loan.publish()
        """

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Ids that are in no vocabulary are passed over."""

    def decode_stream(self, *, skip_special_tokens: bool = True) -> DecodeStream:
        """A stream that turns ids into text one by one."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens, None for no limit."""
    @property
    def pad_id(self) -> int:
        """What short rows are filled with."""
    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, added ones included."""

@final
class Batch:
    """Texts as token ids: a mapping from names to arrays."""

    def __getitem__(self, name: str, /) -> npt.NDArray[Any]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> list[str]: ...
    def values(self) -> list[npt.NDArray[Any]]: ...
    def items(self) -> list[tuple[str, npt.NDArray[Any]]]: ...
    def get(self, name: str, default: _T | None = None) -> npt.NDArray[Any] | _T | None: ...
    def numpy(self) -> dict[str, npt.NDArray[Any]]:
        """The same as a dict of NumPy arrays."""
    def torch(self) -> dict[str, Any]:
        """The same as a dict of torch tensors, which share the arrays' memory."""
    @property
    def rows(self) -> int:
        """Rows: texts, and with ``stride`` their further rows."""
    @property
    def token_count(self) -> int:
        """Tokens without padding."""
    @property
    def padded_count(self) -> int:
        """Tokens with padding."""
    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest row."""
    @property
    def waste(self) -> float:
        """Share of the padded tokens that is padding, 0 to 1."""
    @property
    def item_of_row(self) -> list[int]:
        """The index of the text that each row belongs to."""
    @property
    def errors(self) -> dict[int, str]:
        """The index of each text that was refused, whose row is empty, and why."""

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
        """Write ids and mask, padded, into two writable int64 arrays of `shape`."""
    def __len__(self) -> int: ...

@final
class DecodeStream:
    """Text as it becomes certain."""

    def push(self, id: int) -> str | None:
        """The text that is certain now that ``id`` came: no half characters, nothing that a later id changes."""
    def finish(self) -> str | None:
        """What was held back, now that nothing comes any more. The stream is at its start again."""

# === images, tables, numbers ===

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
        max_batch_bytes: int | None,
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
    def write(self, out: Any, mask: Any, threads: int | None) -> list[tuple[int, str]]: ...
