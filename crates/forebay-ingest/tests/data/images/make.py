"""Makes the images of this folder, and what Pillow makes of them: `python make.py COFFEE_PNG`.

COFFEE_PNG is `skimage/data/coffee.png` of scikit-image, a photograph under CC0 (Rachel Michetti, see LICENCE.md).
Pillow 13 made what is committed. The tests of forebay-ingest read these files; nothing else runs this script.

    NAME.EXT         an image
    NAME.EXT.rgb     its upright pixels as Pillow decodes them, transparency over white: 3 bytes a pixel
    resize.bin       for each case: filter, width, height, new width, new height (u16, little-endian), the pixels, and
                     Pillow's resize of them
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
FILTERS = [
    Image.Resampling.NEAREST,
    Image.Resampling.LANCZOS,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
]
# Sizes of the first cases: shrinking; growing; both; the height far more than the width, which turns the passes round.
FIRST = [(30, 22, 13, 11), (9, 7, 23, 25), (30, 3, 5, 21), (16, 30, 12, 9), (9, 25, 14, 12)]


def rgb(image: Image.Image) -> bytes:
    """The upright pixels, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB").tobytes()


def save(image: Image.Image, name: str, *, reference: bool = True, **options: object) -> None:
    """Save an image, and beside it what Pillow reads from it."""
    path = HERE / name
    image.save(path, **options)
    if reference:
        with Image.open(path) as saved:
            (HERE / f"{name}.rgb").write_bytes(rgb(saved))


def resizes(photograph: Image.Image) -> None:
    """Shrinking, growing, both at once, one pixel, thin images; photographs and noise."""
    chance, noise = random.Random(7), np.random.default_rng(7)
    with (HERE / "resize.bin").open("wb") as out:
        for case in range(12):
            side = [chance.choice([1, 2, chance.randint(3, 9), chance.randint(10, 25)]) for _ in range(4)]
            width, height, new_width, new_height = FIRST[case] if case < len(FIRST) else side
            if case % 2 == 0:
                image = photograph.resize((width, height))
            else:
                image = Image.fromarray(noise.choice(np.array([0, 255, 128], np.uint8), (height, width, 3)))
            for number, resample in enumerate(FILTERS):
                resized = image.resize((new_width, new_height), resample)
                out.write(struct.pack("<5H", number, width, height, new_width, new_height))
                out.write(image.tobytes() + resized.tobytes())


def main() -> None:
    """Make all of them."""
    with Image.open(sys.argv[1]) as coffee:
        photograph = coffee.convert("RGB").crop((33, 0, 567, 400))
    save(photograph.resize((500, 375), Image.Resampling.LANCZOS), "coffee.jpg", quality=75, reference=False)
    small = photograph.resize((36, 28), Image.Resampling.LANCZOS)
    save(small, "progressive.jpg", quality=90, progressive=True)
    save(small, "444.jpg", quality=90, subsampling=0)
    save(small, "422.jpg", quality=90, subsampling=1)
    save(small, "keep-rgb.jpg", quality=90, keep_rgb=True)
    save(small, "restarts.jpg", quality=90, restart_marker_blocks=3)
    save(small.convert("L"), "gray.jpg", quality=90)
    save(small.convert("CMYK"), "cmyk.jpg", quality=50, reference=False)

    tiny = photograph.resize((16, 12), Image.Resampling.LANCZOS)
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        save(tiny, f"orientation-{value}.jpg", quality=95, subsampling=0, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tiny, "orientation-6.png", exif=exif)
    save(tiny, "orientation-6.webp", lossless=True, exif=exif)

    levels = np.linspace(0, 255, 32 * 24 * 3).reshape(24, 32, 3).astype(np.uint8)
    save(Image.fromarray(levels), "gradient.png")
    alpha = Image.fromarray(np.add.outer(np.arange(28) * 6, np.arange(36) * 4).clip(0, 255).astype(np.uint8))
    transparent = small.copy()
    transparent.putalpha(alpha)
    save(transparent, "rgba.png")
    save(transparent.convert("LA"), "gray-alpha.png")
    save(small.convert("L"), "gray.png")
    save(small.convert("1"), "one-bit.png", bits=1)
    save(small.quantize(16), "palette.png")
    save(small.quantize(16), "palette-transparent.png", transparency=3)
    deep = (np.asarray(small.convert("L")).astype(np.uint16) << 8) + 77
    save(Image.fromarray(deep), "gray16.png", reference=False)
    save(tiny, "animated.png", reference=False, save_all=True, append_images=[tiny.rotate(90)])

    save(small, "lossy.webp", quality=80)
    save(small, "lossless.webp", lossless=True)
    save(transparent, "rgba.webp", quality=80)
    save(transparent, "rgba-lossless.webp", lossless=True, exact=True)
    save(tiny, "animated.webp", reference=False, save_all=True, append_images=[tiny.rotate(90)])
    save(tiny, "not-read.gif", reference=False)
    resizes(photograph)


if __name__ == "__main__":
    main()
