"""What is asked: bodies of requests, as each server wants them, and what must come back."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

BODIES = 64
BOUNDARY = "forebay-compare-serve"
KJV = Path(__file__).resolve().parents[2] / "examples/data/kjv.txt"


@dataclass(frozen=True)
class Job:
    """One kind of request."""

    name: str
    what: str
    # At this concurrency servers are compared; 1 shows the price of a request, the last one the most they do.
    concurrency: tuple[int, ...]
    # Processes that run the model, of the rivals and of forebay, whose own part runs on threads of the daemon.
    workers: int
    ours: int
    # How far a number may be from the reference: a server that answers something else is not compared.
    tolerance: float
    # The largest batch, of everybody who batches.
    batch: int = 32


JOBS = (
    Job("text", "400 tokens of text → 64 floats", (1, 8, 64), workers=2, ours=1, tolerance=1e-5),
    # Other decoders round otherwise: by some 256ths of a colour, less than this in the mean of a picture.
    Job("image", "JPEG of 38 KB → 224 × 224 → 3 floats", (1, 8, 64), workers=2, ours=1, tolerance=2e-2),
    Job("json", "4 floats of JSON → 2 floats", (1, 8, 64), workers=2, ours=1, tolerance=1e-5),
    # On a core a batch costs as much as its padded tokens: small ones of like lengths cost the least.
    Job("minilm", "a verse → MiniLM → 384 floats", (1, 8, 32), workers=2, ours=2, tolerance=1e-4, batch=4),
)


def texts(tokens: int) -> list[str]:
    """Texts of about so many tokens, all different."""
    from models import TOKENIZER
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: list[str] = []
    text = ""
    for verse in KJV.read_text().splitlines():
        text = f"{text} {verse}".strip()
        encoding = tokenizer.encode(text)
        if len(encoding.ids) >= tokens:
            # Two of them are the special tokens around it.
            found.append(text[: encoding.offsets[tokens - 2][1]])
            text = ""
        if len(found) == BODIES:
            return found
    raise ValueError(f"{KJV} has not {BODIES} texts of {tokens} tokens")


def photograph() -> bytes:
    """640 x 427, about 38 KB."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    out = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(out, "JPEG", quality=45)
    return out.getvalue()


def bodies(job: str) -> list[bytes]:
    """What clients send, in turn."""
    if job == "image":
        return [photograph()]
    if job == "json":
        return [json.dumps({"inputs": {"x": [index, 0.5, -1.25, 3.0]}}).encode() for index in range(BODIES)]
    verses = KJV.read_text().splitlines()
    step = len(verses) // BODIES
    chosen = texts(400) if job == "text" else [verses[index * step] for index in range(BODIES)]
    return [json.dumps({"inputs": text}).encode() for text in chosen]


def as_form(body: bytes) -> bytes:
    """A file as a browser sends it: the only way in which LitServe takes one."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + body + f"\r\n--{BOUNDARY}--\r\n".encode()
