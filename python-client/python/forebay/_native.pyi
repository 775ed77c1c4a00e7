"""The native half of `forebay`. `help()` shows the full text; here is the first line of each."""

# Tensor's `__buffer__` is there from Python 3.12 on; the protocol itself in all.

import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, final, overload

from typing_extensions import disjoint_base

_T = TypeVar("_T")
_Array: TypeAlias = Any  # NumPy, torch and JAX need not be installed: their types are not named here
_DType: TypeAlias = Any  # "int64", numpy.int64, numpy.dtype, torch.int64, float
_Shape: TypeAlias = int | Sequence[int]
_Bound: TypeAlias = int | Sequence[int | None]
_Device: TypeAlias = Any  # "cuda", "cuda:1", 1, "cpu", torch.device
_Stream: TypeAlias = Any  # torch.cuda.Stream, an object with __cuda_stream__, a CuPy stream, a handle
_Path: TypeAlias = str | os.PathLike[str]
_Route: TypeAlias = Literal["exchange", "dlpack", "legacy", "frombuffer"]
_Wait: TypeAlias = Literal["adaptive", "spin", "block"]

__version__: Final[str]

@final
class Tensor:
    """One tensor, in shared memory; nothing made of it copies, and all of it keeps the slot."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def data_ptr(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def writable(self) -> bool: ...
    @property
    def pinned(self) -> bool: ...
    def numpy(self) -> _Array:
        """A NumPy array of this memory; nothing is copied."""
    def torch(self, *, route: _Route | None = None) -> _Array:
        """A torch tensor of this memory; nothing is copied."""
    def copy(self) -> Tensor:
        """A copy in private memory, which holds no slot and may be written."""
    def tobytes(self) -> bytes:
        """A copy of its bytes, row-major."""
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> _Array: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

@final
class Message(Mapping[str, Tensor]):
    """A received message: a mapping from field name to Tensor, and what the sender said about it."""

    @property
    def sequence(self) -> int: ...
    @property
    def correlation_id(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def user(self) -> bytes: ...
    @property
    def timestamp_ns(self) -> int | None: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def held_for_s(self) -> float: ...
    def __getitem__(self, key: str | int, /) -> Tensor: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> list[str]:  # type: ignore[override]  # a list, made at once: cheaper than a view
        """The field names, in order."""
    def values(self) -> list[Tensor]:  # type: ignore[override]  # as above
        """The tensors, in order."""
    def items(self) -> list[tuple[str, Tensor]]:  # type: ignore[override]  # as above
        """(name, tensor) pairs, in order."""
    @overload
    def get(self, key: str, default: None = None) -> Tensor | None: ...
    @overload
    def get(self, key: str, default: _T) -> Tensor | _T: ...
    def torch(self, *, route: _Route | None = None) -> dict[str, _Array]:
        """All tensors as torch tensors, by name; nothing is copied."""
    def numpy(self) -> dict[str, _Array]:
        """All tensors as NumPy arrays, by name; nothing is copied."""
    def copy(self) -> dict[str, Tensor]:
        """All tensors as copies in private memory, by name."""
    def to(
        self, device: _Device = None, *, stream: _Stream | None = None, out: dict[str, _Array] | None = None
    ) -> dict[str, _Array]:
        """Copy all tensors to a GPU straight from the slot, without waiting; "cpu" gives what torch() gives."""
    def record_stream(self, stream: _Stream) -> None:
        """Keep the slot until the stream is past what it was given before the last view ended."""
    def ack(self) -> bool:
        """The message is dealt with: it will not come back."""
    def nack(self) -> bool:
        """The message was not dealt with: it goes to a consumer again once nothing holds it."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> bool: ...

@final
class HeldLease:
    """A lease that a consumer holds."""

    @property
    def sequence(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def age_s(self) -> float: ...

@final
class ConsumerStats:
    """What a consumer counted since it attached."""

    @property
    def received(self) -> int: ...
    @property
    def acked(self) -> int: ...
    @property
    def nacked(self) -> int: ...
    @property
    def recovered(self) -> int: ...
    @property
    def missed(self) -> int: ...

@disjoint_base
class Consumer:
    """Attaches to a ring and receives its messages."""

    def __new__(
        cls,
        ring: str,
        *,
        timeout_s: float | None = 10.0,
        ack: Literal["auto", "manual"] = "auto",
        wait: _Wait = "adaptive",
        quota: int | None = None,
        reconnect: bool | float | None = None,
        directory: _Path | None = None,
        schema: Schema | None = None,
        writable: bool = False,
        prefault: bool = True,
        pin: bool = False,
        label: str | None = None,
    ) -> Self: ...
    def pin(self, device: _Device = None) -> bool:
        """Register the slots with CUDA, or warn once why not; whether they are."""
    @property
    def pinned(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    def take_device_trouble(self) -> str | None:
        """The first error that was met while following copies, once."""
    @property
    def ring(self) -> str: ...
    @property
    def kind(self) -> Literal["queue", "broadcast"]: ...
    @property
    def schema(self) -> Schema | None: ...
    @property
    def index(self) -> int: ...
    @property
    def data_range(self) -> tuple[int, int]: ...
    @property
    def stats(self) -> ConsumerStats: ...
    @property
    def closed(self) -> bool: ...
    @property
    def _waiters(self) -> Any: ...
    def _try_next(self) -> Message | None: ...
    def _silence(self) -> None: ...
    def recv(self, timeout_s: float | None = None) -> Message:
        """Wait for the next message; None waits without end, 0 only looks."""
    def try_recv(self) -> Message | None:
        """The next message if there is one now, else None."""
    def recv_numpy(self, timeout_s: float | None = None) -> _Array:
        """Wait for the next message and give it as an array of its memory; a dict unless the schema has one field."""
    def recv_torch(self, timeout_s: float | None = None) -> _Array:
        """Wait for the next message and give it as a torch tensor of its memory; else as recv_numpy."""
    @overload
    def recv_many(
        self, limit: int, timeout_s: float | None = None, *, as_: Literal["message"] = "message"
    ) -> list[Message]:
        """Wait for a message, then take what else is there, up to `limit`."""
    @overload
    def recv_many(
        self, limit: int, timeout_s: float | None = None, *, as_: Literal["numpy", "torch"]
    ) -> list[_Array]: ...
    def recv_async(self, timeout_s: float | None = None) -> Awaitable[Message]:
        """Wait for the next message under asyncio; cancelling it loses and holds nothing."""
    def __iter__(self) -> Iterator[Message]: ...
    def __next__(self) -> Message: ...
    def __aiter__(self) -> AsyncIterator[Message]: ...
    def __anext__(self) -> Awaitable[Message]: ...
    def fileno(self) -> int:
        """A descriptor that is readable when try_recv() should be called."""
    def held(self) -> list[HeldLease]:
        """What this consumer holds, oldest sequence first."""
    def close(self) -> None:
        """Stop receiving; whatever is not acked goes back when its lease ends."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]: ...

@final
class ConsumerSet:
    """Receives from several rings, fairly: one wait for all of them."""

    def __new__(cls, consumers: Iterable[Consumer]) -> Self: ...
    @property
    def rings(self) -> list[str]: ...
    def recv(self, timeout_s: float | None = None) -> tuple[int, Message]:
        """Wait for the next message of any ring: (place of its consumer, Message)."""
    def try_recv(self) -> tuple[int, Message] | None:
        """(place, Message) if there is one now, else None."""
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, Message]: ...
    def __len__(self) -> int: ...
    def close(self) -> None:
        """Close all its consumers."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Field:
    """One field of a schema: name, element type, the largest value of each dim."""

    def __new__(cls, name: str, dtype: _DType, max_dims: _Bound) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def max_dims(self) -> tuple[int | None, ...]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __getnewargs__(self) -> tuple[str, str, tuple[int | None, ...]]: ...

@final
class Schema:
    """The fields that every message of a ring has, with a name and a version."""

    def __new__(
        cls,
        name: str,
        version: str | tuple[int, int],
        fields: dict[str, tuple[_DType, _Bound]] | Iterable[Field],
    ) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def fields(self) -> tuple[Field, ...]: ...
    @property
    def max_bytes(self) -> int | None: ...
    def mismatch(self, other: Schema) -> str | None:
        """Why a reader that expects this schema cannot read messages of `other`; None if it can."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __getnewargs__(self) -> tuple[str, str, tuple[Field, ...]]: ...

@final
class Loan:
    """One slot, to write: a mapping from field name to writable Tensor. Publish it."""

    @property
    def slot(self) -> int: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __setitem__(self, name: str, array: _Array, /) -> None: ...
    def __contains__(self, name: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> list[str]:
        """The field names."""
    def values(self) -> list[Tensor]:
        """The tensors."""
    def items(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) pairs."""
    def publish(self, *, correlation_id: int = 0, user: bytes | None = None) -> int:
        """Publish the message and return its sequence."""
    def discard(self) -> None:
        """Give the slot back without publishing."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class ProducerStats:
    """What a ring's producer counted, its predecessors included."""

    @property
    def published(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def dead_letters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def full_waits(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def loaned(self) -> int: ...

@final
class Takeover:
    """What was found when a ring was taken over from a dead producer."""

    @property
    def epoch(self) -> int: ...
    @property
    def last_sequence(self) -> int: ...
    @property
    def last_user(self) -> bytes: ...
    @property
    def outstanding(self) -> int: ...

@final
class DeadLetter:
    """A message that was delivered as often as allowed and never acked. Its tensors are copies."""

    @property
    def sequence(self) -> int: ...
    @property
    def correlation_id(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def user(self) -> bytes: ...
    @property
    def tensors(self) -> dict[str, Tensor]: ...

@disjoint_base
class Producer:
    """Creates a ring and publishes messages to it."""

    def __new__(
        cls,
        ring: str,
        *,
        schema: Schema | None = None,
        slots: int = 16,
        slot_bytes: int | None = None,
        classes: Sequence[tuple[int, int]] | None = None,
        kind: Literal["queue", "broadcast"] = "queue",
        backing: Literal["posix", "memfd"] = "posix",
        when_full: Literal["block", "fail", "drop-oldest"] = "block",
        full_timeout_s: float | None = 60.0,
        max_consumers: int = 8,
        max_attempts: int = 3,
        dead_letters: Literal["keep", "discard"] = "keep",
        quota: int | None = None,
        wait: _Wait = "adaptive",
        writable: bool = False,
        timestamps: bool = False,
        fresh: bool = False,
        prefault: bool = True,
        mlock: bool = False,
        huge_pages: bool = False,
        numa: int | str | None = None,
        directory: _Path | None = None,
        label: str | None = None,
    ) -> Self: ...
    @property
    def ring(self) -> str: ...
    @property
    def kind(self) -> Literal["queue", "broadcast"]: ...
    @property
    def schema(self) -> Schema | None: ...
    @property
    def consumers(self) -> int: ...
    @property
    def data_range(self) -> tuple[int, int]: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def stats(self) -> ProducerStats: ...
    @property
    def takeover(self) -> Takeover | None: ...
    def loan(self, fields: dict[str, tuple[_DType, _Shape]], *, timeout_s: float | None = None) -> Loan:
        """A slot to write a message into, without a copy."""
    def send(
        self,
        arrays: dict[str, _Array],
        *,
        correlation_id: int = 0,
        user: bytes | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Copy arrays into a slot and publish it; returns its sequence."""
    def wait_for_consumers(self, count: int = 1, timeout_s: float | None = None) -> None:
        """Wait until `count` consumers are attached."""
    def drain(self, timeout_s: float | None = None) -> None:
        """Wait until every message was finished with."""
    def take_dead_letters(self) -> list[DeadLetter]:
        """The messages that were given up and not handed out yet, oldest first."""
    def close(self) -> None:
        """Close the ring; consumers receive what is there and then see the end."""
    def discard(self) -> None:
        """Close the ring and remove it, with whatever nobody has received."""
    def suspend(self) -> None:
        """Close the ring and keep it for a successor (posix)."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]: ...

@final
class Item:
    """One row of a batch: its id, and until when its answer is wanted (`time.monotonic()`; None: always)."""

    @property
    def id(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...

@final
class Batch:
    """A batch to work on: named tensors with a row for each item, and what the client says about them."""

    @property
    def items(self) -> list[Item]: ...
    @property
    def ids(self) -> list[int]: ...
    @property
    def request(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def trace(self) -> str | None: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __contains__(self, name: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]:
        """The field names, in order."""
    def torch(self, *, route: _Route | None = None) -> dict[str, _Array]:
        """All fields as torch tensors, by name; nothing is copied."""
    def numpy(self) -> dict[str, _Array]:
        """All fields as NumPy arrays, by name; nothing is copied."""
    def rows(self, start: int, stop: int) -> Batch:
        """Some of its rows as a batch of their own; nothing is copied."""
    def _part(self, start: int, stop: int) -> Batch: ...
    def cancelled(self, index: int) -> bool:
        """Whether nobody wants item `index` any more."""
    def fail(self, index: int, error: BaseException | str) -> None:
        """Item `index` failed, while the others go on."""
    @property
    def _failures(self) -> list[tuple[int, str]]: ...
    def unwanted(self) -> bool:
        """Whether no item is wanted any more: each is cancelled, or its deadline is over."""

@final
class AnswerItem:
    """One row of an answer: how it went with an item."""

    @property
    def id(self) -> int: ...
    @property
    def request(self) -> int: ...
    @property
    def status(self) -> Literal["ok", "error", "cancelled"]: ...
    @property
    def last(self) -> bool: ...
    @property
    def error(self) -> str | None: ...

@final
class Answer:
    """An answer: named tensors with a row for each of its items."""

    @property
    def kind(self) -> Literal["ready", "result", "part", "failed"]: ...
    @property
    def request(self) -> int: ...
    @property
    def items(self) -> list[AnswerItem]: ...
    @property
    def failure(self) -> tuple[str, str] | None: ...
    @property
    def readiness(self) -> tuple[int, int, str] | None: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def ended_ns(self) -> int: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __contains__(self, name: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]:
        """The field names, in order."""
    def item(self, index: int) -> AnswerItem:
        """Row `index` of `items`."""
    def torch(self, *, route: _Route | None = None) -> dict[str, _Array]:
        """All fields as torch tensors, by name; nothing is copied."""
    def numpy(self) -> dict[str, _Array]:
        """All fields as NumPy arrays, by name; nothing is copied."""

@final
class ServiceClient:
    """Begins a service and asks its server."""

    def __new__(
        cls,
        service: str,
        *,
        schema: Schema | None = None,
        slots: int = 16,
        slot_bytes: int | None = None,
        max_items: int = 1024,
        ranks: int = 1,
        writable: bool = False,
        directory: _Path | None = None,
        wait: _Wait = "adaptive",
        label: str | None = None,
    ) -> Self: ...
    @property
    def service(self) -> str: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def is_alive(self) -> bool: ...
    def accept(self, timeout_s: float | None = None) -> None:
        """Wait until the server, with all its ranks, is attached."""
    def send(
        self,
        arrays: dict[str, _Array],
        *,
        ids: Sequence[int] | None = None,
        deadline: float | None = None,
        trace: str | None = None,
    ) -> int:
        """Copy arrays into a slot and ask; returns the request's number."""
    def recv(self, timeout_s: float | None = None) -> Answer:
        """Wait for the next answer."""
    def try_recv(self) -> Answer | None:
        """The next answer if there is one now, else None."""
    def cancel(self, request: int, items: Sequence[int] | None = None) -> None:
        """Nobody wants these items of a request any more (None: all)."""
    def drain(self) -> None:
        """Ask the server to answer what was asked and then leave."""
    def fileno(self) -> int:
        """A descriptor that is readable when try_recv should be called."""
    def close(self) -> None:
        """End the service."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class ServiceServer:
    """Attaches to a service and answers its requests; `Worker` is the loop around it."""

    def __new__(
        cls,
        service: str,
        *,
        directory: _Path | None = None,
        timeout_s: float | None = 10.0,
        answer_slots: int = 8,
        answer_slot_bytes: int = 1048576,
        max_items: int = 1024,
        rank: int = 0,
        writable: bool = False,
        wait: _Wait = "adaptive",
        label: str | None = None,
    ) -> Self: ...
    @property
    def service(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def held(self) -> tuple[int, int]: ...
    def ready(self, text: str = "") -> None:
        """Tell the client that this server is warmed up."""
    def recv(self, timeout_s: float | None = None) -> Batch:
        """Wait for the next request."""
    def try_recv(self) -> Batch | None:
        """The next request if there is one now, else None."""
    def answer(self, batch: Batch, fields: dict[str, _Array], *, started_ns: int = 0, ended_ns: int = 0) -> None:
        """Answer a batch, or the rows of one."""
    def part(
        self,
        items: Sequence[tuple[int, bool]],
        fields: dict[str, _Array],
        *,
        errors: dict[int, BaseException | str] | None = None,
        cancelled: Sequence[int] | None = None,
        started_ns: int = 0,
        ended_ns: int = 0,
    ) -> None:
        """Send rows of some items, perhaps of several batches: (id, last) for each."""
    def fail(self, batch: Batch, error: BaseException | str | tuple[str, str]) -> None:
        """A batch, or the rows of one, failed."""
    def give_up(self, batch: Batch) -> None:
        """Nobody wants a batch, or the rows of one: answer each item as cancelled."""
    def finish(self, batch: Batch) -> None:
        """Be through with a batch without answering it: for ranks other than 0."""
    def is_cancelled(self, request: int, item: int) -> bool:
        """Whether nobody wants this item of a request any more."""
    def cancelled(self) -> list[tuple[int, int]]:
        """The received items that nobody wants any more: (request, item)."""
    def fileno(self) -> int:
        """A descriptor that is readable when try_recv should be called."""
    def close(self) -> None:
        """End the service for the client, after it read every answer."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class HeldSlot:
    """A slot that a consumer holds."""

    @property
    def slot(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def age_s(self) -> float: ...
    @property
    def acked(self) -> bool: ...

@final
class ConsumerReport:
    """A consumer of a ring, as seen from outside."""

    @property
    def index(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def state(self) -> Literal["joining", "active", "leaving", "empty"]: ...
    @property
    def pid(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def received(self) -> int: ...
    @property
    def held(self) -> list[HeldSlot]: ...

@final
class RingReport:
    """A ring, as far as it could be looked at. All of it may be stale at once."""

    @property
    def name(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def problem(self) -> str | None: ...
    @property
    def kind(self) -> Literal["queue", "broadcast"] | None: ...
    @property
    def backing(self) -> Literal["posix", "memfd"] | None: ...
    @property
    def schema(self) -> str | None: ...
    @property
    def state(self) -> str | None: ...
    @property
    def epoch(self) -> int: ...
    @property
    def slots(self) -> dict[str, int]: ...
    @property
    def depth(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def dead_letters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def numa_node(self) -> int | None: ...
    @property
    def consumers(self) -> list[ConsumerReport]: ...

def list_rings(directory: _Path | None = None) -> list[RingReport]:
    """The rings of a directory, with or without a living producer, by name."""

def torch_routes() -> tuple[list[str], str]:
    """The routes by which torch can be given tensors, cheapest first, and the one that is taken."""

def _after_fork_in_child() -> None: ...
def _leave_captures_alone() -> None: ...
def _close_everything() -> None: ...
def _refuse_other_interpreters() -> None: ...
