"""What `forebay feed` puts into a ring is, bit for bit, what the classes of this package make of the same input."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

import forebay
from forebay_ingest import ImageProcessor, TableEncoder

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("FOREBAY_BIN", ROOT / "target/release/forebay"))
IMAGES = ROOT / "crates/forebay-ingest/tests/data/images"
NAMES = ["422.jpg", "gradient.png", "lossy.webp", "gray.jpg", "orientation-6.jpg"]


@pytest.fixture(scope="module", autouse=True)
def _binary() -> None:
    assert BINARY.exists(), f"{BINARY} is missing; `make binary` builds it"


def fed(folder: pathlib.Path, ring: str, *arguments: object) -> list[dict[str, np.ndarray]]:
    """Return copies of the tensors of every message of a feed."""
    environment = os.environ | {"FOREBAY_DIR": str(folder / "rings")}
    command = [BINARY, "feed", "--ring", ring, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as feed:
        consumer = forebay.Consumer(ring, directory=folder / "rings", timeout_s=60)
        messages = []
        try:
            while True:
                message = consumer.recv(60)
                messages.append({name: message[name].numpy().copy() for name in message})
                del message  # and ack it: the feed waits for that
        except forebay.RingClosed:
            pass
        consumer.close()
        assert feed.wait(60) == 0, feed.stderr.read()
    return messages


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "DetrImageProcessor"])
def test_images_are_those_of_the_processor(tmp_path, kind, dtype):
    config = {"image_processor_type": kind}
    if kind == "CLIPImageProcessor":
        config |= {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    else:
        config |= {"size": {"shortest_edge": 32, "longest_edge": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    files = [IMAGES / name for name in NAMES]
    arguments = ["--images", "--processor", tmp_path, "--dtype", dtype, "--batch", 3, *files]
    messages = fed(tmp_path, "images", *arguments)
    assert len(messages) == 2
    processor = ImageProcessor.from_config(config, dtype=dtype)
    for message, names in zip(messages, [files[:3], files[3:]], strict=True):
        images = [name.read_bytes() for name in names]
        if kind == "CLIPImageProcessor":
            expected = {"pixel_values": processor(images)}
        else:
            pixel_values, pixel_mask, _ = processor.padded(images)
            expected = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        assert message.keys() == expected.keys()
        for name, array in expected.items():
            assert message[name].dtype == array.dtype
            assert message[name].shape == array.shape
            assert message[name].tobytes() == array.tobytes()


def test_tables_are_those_of_the_encoder(tmp_path):
    schema = {
        "tensors": [
            {"name": "x", "columns": [{"type": "numeric", "path": "a.b", "missing": "nan"}]},
            {"name": "c", "dtype": "u8", "columns": [{"type": "one_hot", "path": "c", "vocabulary": ["p", "q", 3]}]},
            {
                "name": "s",
                "layout": "sparse",
                "columns": [{"type": "hashed", "path": "h", "features": 128, "input": "dict", "missing": "zeros"}],
            },
        ]
    }
    (tmp_path / "s.json").write_text(json.dumps(schema))
    lines = [
        json.dumps({"a": {"b": n / 7} if n % 5 else {}, "c": ["p", "q", 3][n % 3], "h": {f"k{n}": n + 0.5, "z": "w"}})
        for n in range(250)
    ]
    text = tmp_path / "a.jsonl"
    text.write_text("\n".join(lines))
    messages = fed(tmp_path, "rows", "--jsonl", "--schema", tmp_path / "s.json", "--batch", 100, text)
    encoder = TableEncoder.from_file(tmp_path / "s.json")
    assert len(messages) == 3
    for at, message in enumerate(messages):
        batch = encoder.encode(lines[100 * at : 100 * at + 100])
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in batch.fields.items()}
        batch.write_into(arrays)
        assert message.keys() == arrays.keys()
        for name, array in arrays.items():
            assert message[name].dtype == array.dtype
            assert message[name].tobytes() == array.tobytes()
