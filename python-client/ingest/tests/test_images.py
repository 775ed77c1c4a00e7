"""Image processors against those of transformers and against Pillow, and what becomes of bad images."""

from __future__ import annotations

import io
import json
import random
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from interrupted import after_ctrl_c
from PIL import ExifTags, Image, ImageOps

import forebay_ingest
from forebay_ingest import ImageFailure, ImageProcessor, IngestError

DATA = Path(__file__).resolve().parents[3] / "crates/forebay-ingest/tests/data/images"
COFFEE = (DATA / "coffee.jpg").read_bytes()
VIT = {"image_processor_type": "ViTImageProcessor"}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def photographs() -> list[Image.Image]:
    """Parts of the photograph: wide, high, square, small, odd."""
    with Image.open(io.BytesIO(COFFEE)) as coffee:
        whole = coffee.convert("RGB")
    sizes = [(500, 375), (375, 500), (224, 224), (97, 61), (333, 500), (40, 300)]
    return [whole.resize(size) for size in sizes]


# Each with its transformers class; None where sizes differ from image to image and cannot be one array.
CONFIGS: list[dict[str, Any]] = [
    {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 61, "width": 97}, "resample": 3},
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
    {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "resample": 0},
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "resample": 4},
    {"image_processor_type": "ViTImageProcessor", "rescale_factor": 0.01, "image_mean": 0.3, "resample": 1},
    {"image_processor_type": "CLIPImageProcessor"},
    {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 301, "width": 97}},
    {"image_processor_type": "CLIPImageProcessor", "size": 77, "crop_size": 64},
    {"image_processor_type": "DeiTImageProcessor"},
    {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "crop_size": 200},
    {"image_processor_type": "SiglipImageProcessor"},
    {"image_processor_type": "BlipImageProcessor"},
    {"image_processor_type": "BitImageProcessor"},
    {"image_processor_type": "PvtImageProcessor"},
    {"image_processor_type": "SegformerImageProcessor"},
    {"image_processor_type": "MobileNetV1ImageProcessor"},
    {"image_processor_type": "ChineseCLIPImageProcessor"},
    {"image_processor_type": "RTDetrImageProcessor"},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    {"image_processor_type": "ConvNextImageProcessor"},
]
PADDED: list[dict[str, Any]] = [
    {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 200, "longest_edge": 333}},
    {"image_processor_type": "DetrImageProcessor", "size": 120, "max_size": 150},
    {"image_processor_type": "ConditionalDetrImageProcessor", "size": {"shortest_edge": 100, "longest_edge": 1333}},
    {"image_processor_type": "DeformableDetrImageProcessor", "size": {"height": 90, "width": 100}},
    {
        "image_processor_type": "GroundingDinoImageProcessor",
        "size": {"shortest_edge": 100, "longest_edge": 200},
        "pad_size": {"height": 300, "width": 250},
    },
]


def name_of(config: dict[str, Any]) -> str:
    return json.dumps(config)


def reference(config: dict[str, Any], suffix: str) -> Any:
    options = {key: value for key, value in config.items() if key != "image_processor_type"}
    return getattr(transformers, config["image_processor_type"] + suffix)(**options)


def level(config: dict[str, Any]) -> float:
    """What one level of 255 is in the tensor, at most."""
    processor = reference(config, "Pil")
    level = float(processor.rescale_factor) if processor.do_rescale else 1.0
    std = np.min(processor.image_std) if processor.do_normalize else 1.0
    return level / float(std)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_tensors_are_those_of_the_pil_processor(config: dict[str, Any]) -> None:
    images = photographs()
    expected = reference(config, "Pil")(images, return_tensors="np")["pixel_values"]
    found = ImageProcessor.from_config(config)([png(image) for image in images])
    assert found.shape == expected.shape
    # To the last bit, but for the last one of a division in single precision that NumPy may do otherwise.
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_tensors_are_within_a_few_levels_of_the_torchvision_processor(config: dict[str, Any]) -> None:
    if config.get("crop_size") == {"height": 301, "width": 97}:
        pytest.skip("torchvision puts the odd pixel of a crop's padding on the other side")
    if config.get("resample") in (0, 4):
        pytest.skip("torchvision takes another pixel for the nearest one, and has no box")
    images = photographs()[:3]
    expected = reference(config, "")(images, return_tensors="np")["pixel_values"]
    found = ImageProcessor.from_config(config)([png(image) for image in images])
    off = np.abs(found.astype(np.float64) - expected) / level(config)
    # Its passes are made in another order, which shows where a bicubic filter overshoots.
    assert off.max() <= 5, off.max()
    assert off.mean() <= 0.3, off.mean()


@pytest.mark.parametrize("config", PADDED, ids=name_of)
def test_padded_tensors_and_masks_are_those_of_the_pil_processor(config: dict[str, Any]) -> None:
    images = photographs()
    expected = reference(config, "Pil")(images, return_tensors="np")
    found = ImageProcessor.from_config(config).padded([png(image) for image in images])
    assert found.pixel_values.shape == expected["pixel_values"].shape
    np.testing.assert_allclose(found.pixel_values, expected["pixel_values"], rtol=3e-7, atol=3e-7)
    np.testing.assert_array_equal(found.pixel_mask, expected["pixel_mask"])
    assert found.pixel_mask.dtype == np.int64 and found.failures == []


def test_jpegs_are_within_a_few_levels() -> None:
    expected = reference(VIT, "Pil")(Image.open(io.BytesIO(COFFEE)), return_tensors="np")["pixel_values"]
    found = ImageProcessor.from_config(VIT)([COFFEE])
    off = np.abs(found - expected) / level(VIT)
    # Decoders round differently, most where colours were stored at half the size.
    assert off.max() <= 8 and off.mean() < 0.3, (off.max(), off.mean())


def test_transparency_is_laid_over_white_as_transformers_does() -> None:
    config = {"image_processor_type": "CLIPImageProcessor", "size": 20, "crop_size": 20}
    for name in ("rgba.png", "gray-alpha.png", "palette-transparent.png", "rgba-lossless.webp"):
        bytes_ = (DATA / name).read_bytes()
        expected = reference(config, "Pil")(Image.open(io.BytesIO(bytes_)), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(ImageProcessor.from_config(config)([bytes_]), expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_exif_turns_a_png_wherever_it_stands(orientation: int, before: bytes) -> None:
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (5, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    plain = png(image)
    at = plain.index(before) - 4
    file = plain[:at] + chunk + plain[at:]
    with Image.open(io.BytesIO(file)) as stored:
        # Pillow comes to what is behind the pixels when it has read them.
        stored.load()
        expected = np.asarray(ImageOps.exif_transpose(stored))
    config = VIT | {"do_resize": False, "do_rescale": False, "do_normalize": False}
    processor = ImageProcessor.from_config(config, dtype="uint8", layout="channels_last")
    np.testing.assert_array_equal(processor([file])[0], expected)


def test_resizes_of_any_size_are_pillows() -> None:
    chance, noise = random.Random(5), np.random.default_rng(5)
    for _ in range(60):
        width, height, new_width, new_height = (chance.choice([1, 2, 3, chance.randint(4, 90)]) for _ in range(4))
        image = Image.fromarray(noise.choice(np.array([0, 255, 99], np.uint8), (height, width, 3)))
        resample = chance.randrange(6)
        size = {"height": new_height, "width": new_width}
        config = VIT | {"size": size, "resample": resample, "do_rescale": False, "do_normalize": False}
        found = ImageProcessor.from_config(config, dtype="uint8", layout="channels_last")([png(image)])
        expected = np.asarray(image.resize((new_width, new_height), resample))
        np.testing.assert_array_equal(found[0], expected, err_msg=f"{width}x{height} to {size}, {resample}")


def test_layouts_and_types_hold_the_same_values() -> None:
    first = ImageProcessor.from_config(VIT)([COFFEE])
    last = ImageProcessor.from_config(VIT, layout="channels_last")([COFFEE])
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    half = ImageProcessor.from_config(VIT, dtype="float16")([COFFEE])
    np.testing.assert_array_equal(half, first.astype(np.float16))
    brain = ImageProcessor.from_config(VIT, dtype="bfloat16")([COFFEE])
    expected = torch.from_numpy(first).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(brain.view(np.int16), expected)


def test_a_bad_image_raises_with_its_index() -> None:
    processor = ImageProcessor.from_config(VIT)
    with pytest.raises(IngestError, match=r"^image 2: the JPEG image is damaged") as caught:
        processor([COFFEE, COFFEE, COFFEE[:5000], b""])
    assert caught.value.index == 2


def test_a_bad_image_is_reported_and_the_others_are_there() -> None:
    processor = ImageProcessor.from_config(VIT)
    items = [COFFEE, b"GIF89a", (DATA / "animated.webp").read_bytes(), COFFEE]
    for threads in (None, 1, 2):
        found, failures = processor(items, threads=threads, on_error="report")
        assert [failure.index for failure in failures] == [1, 2]
        assert isinstance(failures[0], ImageFailure) and "is animated" in failures[1].reason
        np.testing.assert_array_equal(found[0], found[3])
        assert not found[1:3].any() and found[0].any()
    good, none = processor(items[:1], on_error="report")
    assert good.shape == (1, 3, 224, 224) and none == []


def test_bytes_of_other_kinds_are_taken() -> None:
    processor = ImageProcessor.from_config(VIT)
    kinds = [COFFEE, bytearray(COFFEE), memoryview(COFFEE), np.frombuffer(COFFEE, np.uint8)]
    found = processor(iter(kinds))
    assert all(np.array_equal(found[0], one) for one in found)


def test_an_item_that_is_no_bytes_is_a_bad_image_and_no_more() -> None:
    alone = ImageProcessor.from_config(VIT)([COFFEE])[0]
    padding = ImageProcessor.from_config(PADDED[1])
    for wrong in ("coffee.jpg", None, 3, [1, 2]):
        items: list[Any] = [COFFEE, wrong, b"", COFFEE]
        with pytest.raises(IngestError, match=r"^image 1: it is \w+, expected the bytes of a file") as caught:
            ImageProcessor.from_config(VIT)(items)
        assert caught.value.index == 1
        found, failures = ImageProcessor.from_config(VIT)(items, on_error="report")
        assert np.array_equal(found[0], alone) and np.array_equal(found[3], alone) and not found[1:3].any()
        assert [failure.index for failure in failures] == [1, 2]
        # Where headers are read before, too.
        failures = padding.padded(items, on_error="report").failures
        assert [failure.index for failure in failures] == [1, 2]
        assert failures[0].reason == f"it is {type(wrong).__name__}, expected the bytes of a file; read the file first"
        assert "0 bytes" in failures[1].reason


def test_out_is_written_and_looked_at_first() -> None:
    processor = ImageProcessor.from_config(VIT)
    out = np.full((2, 3, 224, 224), 7, np.float32)
    assert processor([COFFEE, COFFEE], out) is out
    np.testing.assert_array_equal(out[0], processor([COFFEE])[0])
    for bad in (out[:1], out.astype(np.float64), np.empty((224, 224, 3, 2), np.float32).T):
        with pytest.raises(ValueError, match="out is .*, expected contiguous float32 of shape"):
            processor([COFFEE, COFFEE], bad)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        processor([COFFEE, COFFEE], out)


def test_torch_takes_it_without_a_copy() -> None:
    found = ImageProcessor.from_config(VIT)([COFFEE])
    tensor = torch.from_numpy(found)
    assert tensor.data_ptr() == found.ctypes.data and tensor.shape == (1, 3, 224, 224)


def test_configurations_come_from_files_and_folders(tmp_path: Path) -> None:
    reference(VIT, "Pil").save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path / "preprocessor_config.json")):
        assert ImageProcessor.from_config(path).size == (224, 224)
    with pytest.raises(FileNotFoundError, match="missing"):
        ImageProcessor.from_config(tmp_path / "missing")


def test_what_is_not_understood_is_named() -> None:
    for config, word in [
        ({}, "image_processor_type"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor"),
        (VIT | {"do_sharpen": True}, "do_sharpen"),
        (VIT | {"size": {"height": -3, "width": 3}}, "size is"),
    ]:
        with pytest.raises(ValueError, match=word):
            ImageProcessor.from_config(config)
    with pytest.raises(ValueError, match="dtype is u8, but the images are rescaled"):
        ImageProcessor.from_config(VIT, dtype="uint8")
    with pytest.raises(ValueError, match='dtype is "float64", expected "uint8" or'):
        ImageProcessor.from_config(VIT, dtype="float64")  # type: ignore[arg-type]
    processor = ImageProcessor.from_config(PADDED[0])
    with pytest.raises(ValueError, match="padded"):
        processor([COFFEE])
    with pytest.raises(ValueError, match="on_error"):
        processor.padded([COFFEE], on_error="skip")  # type: ignore[arg-type]


def test_limits_are_looked_at_before_anything_is_decoded() -> None:
    small = ImageProcessor.from_config(VIT, max_pixels=100 * 100)
    with pytest.raises(IngestError, match=r"500 × 375, at most 10000 pixels"):
        small([COFFEE])
    with pytest.raises(IngestError, match=r"32111 bytes, at most 100 are"):
        ImageProcessor.from_config(VIT, max_bytes=100)([COFFEE])


def test_a_high_image_beside_a_wide_one_is_refused_before_memory_is_asked_for() -> None:
    processor = ImageProcessor.from_config({"image_processor_type": "DetrImageProcessor", "do_resize": False})
    images = [png(Image.new("RGB", size)) for size in [(1, 65_535), (65_535, 1), (3, 2)]]
    found = processor.padded(images, on_error="report")
    assert found.pixel_values.shape == (3, 3, 65_535, 3)
    assert found.pixel_mask.sum(axis=(1, 2)).tolist() == [65_535, 0, 6]
    assert [failure.index for failure in found.failures] == [1]
    with pytest.raises(IngestError, match=r"3 images of 65535 × 65535 .*, at most 2147483648 are allowed") as caught:
        processor.padded(images)
    assert caught.value.index == 1
    # 500 × 375 would be the size of both; 16 × 12 may be.
    plain = ImageProcessor.from_config(VIT | {"do_resize": False}, max_batch_bytes=10_000)
    array, failures = plain([COFFEE, (DATA / "orientation-1.jpg").read_bytes()], on_error="report")
    assert array.shape == (2, 3, 12, 16) and [failure.index for failure in failures] == [0]


def test_ctrl_c_is_heard_between_a_few_large_images() -> None:
    prepare = """
import io, forebay_ingest
from PIL import Image
file = io.BytesIO()
Image.effect_noise((4000, 4000), 64).convert("RGB").save(file, "JPEG")
processor = forebay_ingest.ImageProcessor.from_config({"image_processor_type": "ViTImageProcessor"})
"""
    # Fewer than the calling thread goes on with where they are small.
    assert after_ctrl_c(prepare, "processor([file.getvalue()] * times, threads=1)", 7) < 0.5


def test_threads_share_a_processor() -> None:
    processor = ImageProcessor.from_config(VIT)
    expected = processor([COFFEE])[0]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(processor([COFFEE, COFFEE], threads=1 + index % 3)[1], expected):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_empty_batch_is_empty() -> None:
    assert ImageProcessor.from_config(VIT)([]).shape == (0, 3, 224, 224)
    empty = ImageProcessor.from_config(PADDED[0]).padded([])
    assert empty.pixel_values.shape == (0, 3, 0, 0) and empty.pixel_mask.shape == (0, 0, 0)


def test_it_is_part_of_the_module() -> None:
    assert forebay_ingest.ImageProcessor is ImageProcessor and "ImageProcessor" in forebay_ingest.__all__
