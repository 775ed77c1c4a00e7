"""Text, images and tables become arrays in Rust, on as many cores as you like: NumPy, torch, or straight into slots.

>>> tokenizer = Tokenizer.from_file("tokenizer.json", max_length=128)
>>> batch = tokenizer.encode_batch(["In the beginning", "was the word"])
>>> batch["input_ids"].shape, batch["input_ids"].dtype
((2, 5), dtype('int64'))
>>> model(**batch.torch())

The ids are those of the Python package ``tokenizers`` (for tiktoken vocabularies: ``tiktoken``). `forebay.ingest` is the
same module, imported when it is first used; the client itself never loads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._images import ImageFailure, ImageProcessor, PaddedImages
from ._native import Batch, DecodeStream, IngestError, Tokenizer, Tokens
from ._numbers import MinMaxScaler, StandardScaler, l2_normalize, scale, top_k
from ._tables import FeatureHasher, SparseRows, TableBatch, TableEncoder

__all__ = [
    "Batch",
    "DecodeStream",
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
    "Tokens",
    "l2_normalize",
    "scale",
    "top_k",
]

Mapping.register(Batch)
