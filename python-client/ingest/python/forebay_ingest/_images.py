"""Images to tensors: decoded, resized, cropped, normalized and laid out on all cores, with the interpreter released."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from . import _native
from ._native import IngestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

OnError = Literal["raise", "report"]


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image that became no tensor."""

    index: int
    """Its place among those given, from 0."""
    reason: str
    """Why, and what to do."""


class PaddedImages(NamedTuple):
    """Images of several sizes in one array, and where in it they are."""

    pixel_values: npt.NDArray[Any]
    """images × channels × height × width, or in the order asked for."""
    pixel_mask: npt.NDArray[np.int64]
    """images × height × width: 1 where the image is, 0 where its padding is."""
    failures: list[ImageFailure]
    """Images that became no tensor; their places are zero. Empty unless ``on_error="report"``."""


def _dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's type of that name; bfloat16 is one only with ml_dtypes."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        text = "NumPy has no bfloat16 of its own, found no ml_dtypes; install ml_dtypes, or choose float16 or float32"
        raise ValueError(text) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _raise(failure: ImageFailure) -> None:
    error = IngestError(f"image {failure.index}: {failure.reason}")
    error.index = failure.index
    raise error


class ImageProcessor:
    """Turns the bytes of image files into one array, as a Hugging Face ``preprocessor_config.json`` says.

    Shared between threads freely; the work is done with the interpreter released. The tensor of an image depends on its
    bytes and the processor alone.

    >>> processor = ImageProcessor.from_config("preprocessor_config.json")
    >>> pixel_values = processor([open(path, "rb").read() for path in paths])
    >>> pixel_values.shape, pixel_values.dtype
    ((32, 3, 224, 224), dtype('float32'))
    >>> model(torch.from_numpy(pixel_values))
    """

    def __init__(self, native: _native.ImageProcessor, dtype: str) -> None:
        self._native = native
        self._dtype = _dtype(dtype)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str],
        *,
        dtype: Literal["float32", "float16", "bfloat16", "uint8"] = "float32",
        layout: Literal["channels_first", "channels_last"] = "channels_first",
        resampling: Literal["exact", "fast"] = "exact",
        transparency: Literal["white", "drop"] = "white",
        damaged: Literal["refuse", "accept"] = "refuse",
        upright: bool = True,
        max_bytes: int | None = None,
        max_pixels: int | None = None,
        max_side: int | None = None,
        max_batch_bytes: int | None = None,
    ) -> ImageProcessor:
        """Make a processor.

        Args:
            config: the content of a ``preprocessor_config.json``, its path, or the folder that holds it.
            dtype: type of the elements. ``"uint8"`` only if nothing is rescaled or normalized; ``"bfloat16"`` needs
                ml_dtypes.
            layout: order of an image's dimensions.
            resampling: ``"exact"`` resizes to Pillow's levels, ``"fast"`` to nearly these.
            transparency: ``"white"`` lays images over white, as transformers does; ``"drop"`` keeps their colours.
            damaged: ``"refuse"`` fails images whose content is damaged, ``"accept"`` takes what a JPEG still gives.
            upright: whether images are turned as their EXIF orientation says.
            max_bytes: most bytes of a file, 64 MiB by default.
            max_pixels: most pixels of an image, 64 Mi by default; looked at before anything is decoded.
            max_side: most pixels a side, 65,535 by default.
            max_batch_bytes: most bytes of an array and its mask where the images decide the size, 2 GiB by default; the
                image that would make them more cannot be prepared.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the processor or a key that would change the result is not supported, or the options do not fit.
        """
        text = json.dumps(config, default=dict) if isinstance(config, Mapping) else None
        native = _native.ImageProcessor.from_config(
            text,
            None if isinstance(config, Mapping) else os.fspath(config),
            dtype=dtype,
            layout=layout,
            resampling=resampling,
            transparency=transparency,
            damaged=damaged,
            upright=upright,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            max_side=max_side,
            max_batch_bytes=max_batch_bytes,
        )
        return cls(native, dtype)

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of every tensor, None if they depend on the images."""
        return self._native.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._dtype

    @overload
    def __call__(
        self,
        images: Iterable[Buffer],
        out: npt.NDArray[Any] | None = None,
        *,
        threads: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> npt.NDArray[Any]: ...

    @overload
    def __call__(
        self,
        images: Iterable[Buffer],
        out: npt.NDArray[Any] | None = None,
        *,
        threads: int | None = None,
        on_error: Literal["report"],
    ) -> tuple[npt.NDArray[Any], list[ImageFailure]]: ...

    def __call__(
        self,
        images: Iterable[Buffer],
        out: npt.NDArray[Any] | None = None,
        *,
        threads: int | None = None,
        on_error: OnError = "raise",
    ) -> npt.NDArray[Any] | tuple[npt.NDArray[Any], list[ImageFailure]]:
        """Prepare a batch.

        Args:
            images: the bytes of each file: JPEG, PNG or WebP.
            out: where to write, a contiguous array of the batch's shape and type, such as a loan's view; a new one by
                default.
            threads: how many to work on; None is one a core, 1 the calling one.
            on_error: ``"raise"`` raises for the first image that cannot be prepared, after all others were tried;
                ``"report"`` leaves its place zero and returns all such images.

        Returns:
            images × channels × height × width, or in the layout asked for; with ``on_error="report"`` that and the
            failures. ``torch.from_numpy`` of it copies nothing.

        Raises:
            IngestError: an image cannot be prepared; ``index`` is its place.
            ValueError: ``out`` does not fit, or images are padded (then `padded` tells where they are).
        """
        if self._native.pads:
            raise ValueError("this processor pads images to one size; call padded(images), which also gives the mask")
        batch = self._native.plan(images, threads)
        array = self._array(batch.shape, out)
        failures = self._write(batch, array, None, threads, on_error)
        return (array, failures) if on_error == "report" else array

    def padded(
        self, images: Iterable[Buffer], *, threads: int | None = None, on_error: OnError = "raise"
    ) -> PaddedImages:
        """Prepare a batch whose images are padded to the largest, or to the size configured.

        Args and errors are those of a call.
        """
        import numpy as np

        batch = self._native.plan(images, threads)
        array = self._array(batch.shape, None)
        mask = np.empty(batch.mask_shape, np.int64)
        failures = self._write(batch, array, mask, threads, on_error)
        return PaddedImages(array, mask, failures)

    def _array(self, shape: tuple[int, ...], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        import numpy as np

        if out is None:
            return np.empty(shape, self._dtype)
        if out.shape != shape or out.dtype != self._dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}, expected contiguous {self._dtype} of shape {shape}; "
                "make it of that shape and type"
            )
        return out

    def _write(
        self,
        batch: _native.ImageBatch,
        array: npt.NDArray[Any],
        mask: npt.NDArray[np.int64] | None,
        threads: int | None,
        on_error: OnError,
    ) -> list[ImageFailure]:
        import numpy as np

        if on_error not in ("raise", "report"):
            raise ValueError(f'on_error is {on_error!r}, expected "raise" or "report"; change the option')
        failures = [ImageFailure(*one) for one in batch.write(array.reshape(-1).view(np.uint8), mask, threads)]
        if failures and on_error == "raise":
            _raise(failures[0])
        return failures
