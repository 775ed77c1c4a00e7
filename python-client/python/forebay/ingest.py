"""Text and more become tensors in Rust: the package ``forebay-ingest`` under the client's name.

>>> import forebay.ingest
>>> tokenizer = forebay.ingest.Tokenizer.from_file("tokenizer.json")

It is a wheel of its own, ``forebay-ingest``, loaded when this module is imported and not before.
"""

from __future__ import annotations

import sys

try:
    import forebay_ingest
except ModuleNotFoundError as error:
    if error.name != "forebay_ingest":
        raise
    raise ModuleNotFoundError(
        "forebay.ingest needs the package forebay-ingest, which is not installed; pip install forebay-ingest",
        name="forebay_ingest",
    ) from None

# One module under two names, so that classes are the same and `isinstance` holds.
sys.modules[__name__] = forebay_ingest
