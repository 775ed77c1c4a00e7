"""Photographs to normalized tensors: forebay, Pillow with NumPy, and the processors of transformers.

Each candidate takes the bytes of 32 JPEGs of 500 x 375 to one float32 array or tensor of 32 x 3 x 224 x 224, bilinear, with
the mean and deviation of ImageNet. The photographs are those of scikit-learn and of the tests, with the chroma at half
size and quality 90 and 75, as cameras and the web have them.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sklearn.datasets
import torch
import torchvision
import transformers
from PIL import Image

import forebay_ingest
from job import OURS, Job

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
BATCH = 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONFIG = {
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": MEAN,
    "image_std": STD,
}


def photographs() -> list[bytes]:
    """A batch of JPEGs of 500 x 375."""
    kinds = [(ROOT / "crates/forebay-ingest/tests/data/images/coffee.jpg").read_bytes()]
    for pixels in sklearn.datasets.load_sample_images().images:
        image = Image.fromarray(pixels).crop((35, 0, 605, 427)).resize((500, 375), Image.Resampling.LANCZOS)
        for quality in (75, 90):
            out = io.BytesIO()
            image.save(out, "JPEG", quality=quality)
            kinds.append(out.getvalue())
    return [kinds[index % len(kinds)] for index in range(BATCH)]


def pillow(images: list[bytes]) -> np.ndarray:
    """What people write by hand."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    batch = np.empty((len(images), 3, 224, 224), np.float32)
    for index, image in enumerate(images):
        pixels = Image.open(io.BytesIO(image)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        array = np.asarray(pixels).astype(np.float32) / 255.0
        batch[index] = ((array - mean) / std).transpose(2, 0, 1)
    return batch


def candidates(threads: int) -> dict[str, Callable[[], int]]:
    """Each on so many threads."""
    images = photographs()
    exact = forebay_ingest.ImageProcessor.from_config({"image_processor_type": "ViTImageProcessor", **CONFIG})
    fast = forebay_ingest.ImageProcessor.from_config(
        {"image_processor_type": "ViTImageProcessor", **CONFIG}, resampling="fast"
    )
    slow, torchvision_ = transformers.ViTImageProcessorPil(**CONFIG), transformers.ViTImageProcessor(**CONFIG)
    pool = ThreadPoolExecutor(threads)
    shares = [images[index::threads] for index in range(threads)]

    def spread(work: Callable[[list[bytes]], object]) -> int:
        """The same on every share of the batch, as users do it with threads of Python."""
        if threads == 1:
            work(images)
        else:
            list(pool.map(work, shares))
        return BATCH

    def ours(processor: forebay_ingest.ImageProcessor) -> int:
        torch.from_numpy(processor(images, threads=threads))
        return BATCH

    def slow_one(share: list[bytes]) -> object:
        return slow([Image.open(io.BytesIO(image)).convert("RGB") for image in share], return_tensors="pt")

    def from_pillow(share: list[bytes]) -> object:
        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in share]
        return torchvision_(opened, return_tensors="pt")

    def from_tensors(share: list[bytes]) -> object:
        encoded = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in share]
        decoded = torchvision.io.decode_jpeg(encoded)
        return torchvision_(decoded, return_tensors="pt")

    torch.set_num_threads(1)
    check(exact(images), pillow(images))
    return {
        OURS: lambda: ours(exact),
        "forebay, fast resampling": lambda: ours(fast),
        "Pillow + NumPy": lambda: spread(pillow),
        "transformers, PIL": lambda: spread(slow_one),
        "transformers, torchvision, from Pillow": lambda: spread(from_pillow),
        "transformers, torchvision, from tensors": lambda: spread(from_tensors),
    }


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """They are the same images, but for the rounding of decoders."""
    off = np.abs(found - expected).mean()
    if off > 0.02:
        raise SystemExit(f"images: forebay is {off} off Pillow on average")


def jobs() -> list[Job]:
    aims = {
        "Pillow + NumPy": 3.0,
        "transformers, PIL": 5.0,
        "transformers, torchvision, from Pillow": 1.0,
        "transformers, torchvision, from tensors": 1.0,
    }
    cores = len(os.sched_getaffinity(0))
    note = (
        "The others on every core: threads of Python, each with its share of the batch; torch has one thread in each."
    )
    found = [Job("JPEG 500×375 to 224×224 float32, one thread", "images", candidates(1), aims)]
    if cores > 1:
        found.append(Job("JPEG 500×375 to 224×224 float32, all cores", "images", candidates(cores), aims, note))
    return found
