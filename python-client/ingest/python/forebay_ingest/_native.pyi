from typing_extensions import Buffer
from typing import final

@final
class Tokenizer:
    @staticmethod
    def from_file(
        path: str,
        *,
        max_length: int | None = None,
        width: str | int | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        pad_side: str | None = None,
        add_special_tokens: bool = True,
    ) -> Tokenizer: ...
    def tokenize(self, texts: list[str]) -> Tokens: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

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
        """Write ids and mask, padded, into two writable int64 buffers of `shape`."""
    def __len__(self) -> int: ...
