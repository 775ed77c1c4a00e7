"""Tokenize in Rust, straight into forebay slots or NumPy arrays.

>>> tokenizer = Tokenizer.from_file("tokenizer.json", max_length=128)
>>> batch = tokenizer.encode_batch(["In the beginning", "was the word"])
>>> batch["input_ids"].shape, batch["input_ids"].dtype
((2, 5), dtype('int64'))

The ids are those of the Python package ``tokenizers``. `forebay.ingest` is the same module, imported when it is first
used; the client itself never loads it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _native
from ._images import ImageFailure, ImageProcessor, PaddedImages
from ._native import IngestError
from ._numbers import MinMaxScaler, StandardScaler, l2_normalize, scale, top_k
from ._tables import FeatureHasher, SparseRows, TableBatch, TableEncoder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "FeatureHasher",
    "ImageFailure",
    "ImageProcessor",
    "IngestError",
    "MinMaxScaler",
    "PaddedImages",
    "SparseRows",
    "StandardScaler",
    "TableBatch",
    "TableEncoder",
    "Tokenizer",
    "l2_normalize",
    "scale",
    "top_k",
]


class Tokenizer:
    """A Hugging Face tokenizer. Shared between threads freely; encoding releases the interpreter."""

    def __init__(self, native: _native.Tokenizer) -> None:
        self._native = native

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        max_length: int | None = None,
        width: str | int = "longest",
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        pad_side: str | None = None,
        add_special_tokens: bool = True,
    ) -> Tokenizer:
        """Load a tokenizer.

        Args:
            path: a ``tokenizer.json``, or the folder that holds one.
            max_length: longest row in tokens, special tokens included; by default what the file says.
            width: ``"longest"`` pads to the longest row of the batch, a number to that many columns.
            pad_to_multiple_of: rounds the width up.
            pad_id: what short rows are filled with; by default what the file says.
            pad_side: ``"left"`` or ``"right"``; by default what the file says.
            add_special_tokens: whether the tokenizer adds its own (``[CLS]``, ``<s>``, …).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a tokenizer, or the options do not fit it.
        """
        return cls(
            _native.Tokenizer.from_file(
                os.fspath(path),
                max_length=max_length,
                width=width,
                pad_to_multiple_of=pad_to_multiple_of,
                pad_id=pad_id,
                pad_side=pad_side,
                add_special_tokens=add_special_tokens,
            )
        )

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens, None for no limit."""
        return self._native.max_length

    @property
    def pad_id(self) -> int:
        """What short rows are filled with."""
        return self._native.pad_id

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._native.vocab_size

    def tokenize(self, texts: Sequence[str]) -> _native.Tokens:
        """Tokenize without padding: its ``shape`` says what to loan, `write_into` writes there.

        >>> tokens = tokenizer.tokenize(texts)
        >>> loan = producer.loan({name: ("int64", tokens.shape) for name in ("input_ids", "attention_mask")})
        >>> tokens.write_into(loan["input_ids"].numpy(), loan["attention_mask"].numpy())
        >>> loan.publish()
        """
        return self._native.tokenize(list(texts))

    def encode_batch(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """Tokenize and pad.

        Returns:
            ``input_ids`` and ``attention_mask``, each int64 of shape (texts, columns).

        Raises:
            ValueError: the tokenizer refuses a text; the error names its place in the batch.
        """
        import numpy as np

        tokens = self.tokenize(texts)
        ids, mask = np.empty(tokens.shape, np.int64), np.empty(tokens.shape, np.int64)
        tokens.write_into(ids, mask)
        return {"input_ids": ids, "attention_mask": mask}
