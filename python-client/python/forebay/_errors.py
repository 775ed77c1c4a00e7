"""Every error of forebay, one tree. Text: what happened; found and expected; what to do. Numbers are attributes."""

# ruff: noqa: N818 - named after what happened, as TimeoutError's kin in the standard library are not consistently *Error

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay._native import HeldLease


class ForebayError(Exception):
    """The root."""


class SystemCallError(ForebayError, OSError):
    """The system refused a call; `errno` says why."""


class InvalidOptions(ForebayError, ValueError):
    """A name, a number or a combination of options cannot be."""

    ring: str


class SchemaError(ForebayError, ValueError):
    """A schema that cannot be."""


class ForkedError(ForebayError, RuntimeError):
    """The object belongs to the parent process; make one after the fork."""

    ring: str | None = None  # of a consumer or producer; a tensor does not know


class HandleClosed(ForebayError, ValueError):
    """The consumer or producer was closed."""

    ring: str


class DTypeUnavailable(ForebayError, TypeError):
    """The library asked for has no such element type, or lacks the package that adds it."""


class DeviceError(ForebayError, RuntimeError):
    """A GPU cannot do what it was asked for; `code` is the CUDA runtime's, None if it gave none."""

    code: int | None


class NoSuchField(ForebayError, KeyError):
    """A message or loan has no field of this name."""

    def __str__(self) -> str:
        """Return the text as it is; KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class WaitTimeout(ForebayError, TimeoutError):
    """Something was not reached in time."""

    waited_s: float


class CreateError(ForebayError):
    """A ring could not be created or taken over."""

    ring: str


class RingTaken(CreateError, ConnectionError):
    """A living producer has the name."""

    holder: str


class InsufficientMemory(CreateError, MemoryError):
    """The ring does not fit."""

    needed_bytes: int
    free_bytes: int
    place: str


class RingDiffers(CreateError, ValueError):
    """A dead producer left another ring of this name."""

    difference: str
    outstanding: int


class AttachError(ForebayError, ConnectionError):
    """A consumer could not attach."""

    ring: str


class RingNotFound(AttachError, TimeoutError):
    """No producer appeared in time."""

    waited_s: float
    path: str


class PeerSilent(AttachError, TimeoutError):
    """A producer accepted the connection and does not answer."""

    waited_s: float


class AttachRefused(AttachError):
    """The producer said no."""

    reason: str


class SchemaMismatch(AttachError, ValueError):
    """The ring has another schema."""

    diff: str


class IncompatibleRing(AttachError, ValueError):
    """What the producer sent is not a ring that this build reads."""


class NotWritable(AttachError, ValueError):
    """`writable` was asked for on a ring that is not."""


class ReceiveError(ForebayError):
    """No message was received."""

    ring: str


class ReceiveTimeout(ReceiveError, TimeoutError):
    """Nothing came in time; calling again is fine."""

    waited_s: float


class RingClosed(ReceiveError, ConnectionError):
    """The producer closed, and everything it published was received."""


class PeerDied(ReceiveError, ConnectionError):
    """The producer died; everything it had published came first."""


class RingReplaced(ReceiveError, ConnectionError):
    """A new producer discarded the ring and made another one of the same name; attach again."""


class RingPoisoned(ReceiveError, ConnectionError):
    """A peer wrote something that cannot be; this consumer is of no use any more."""

    field: str
    found: int


class QuotaExceeded(ReceiveError, TimeoutError):
    """The consumer holds all the messages it may."""

    quota: int
    held: list[HeldLease]


class LoanError(ForebayError):
    """There is no loan."""

    ring: str


class RingFull(LoanError, TimeoutError):
    """No slot became free in time."""

    waited_s: float
    slots: int
    unclaimed: int
    loaned: int


class OwnLoansOutstanding(LoanError, RuntimeError):
    """All slots are on loan to this very producer: waiting could not help."""

    loaned: int


class MessageTooLarge(LoanError, ValueError):
    """It fits no slot, ever."""

    needed_bytes: int
    largest_bytes: int


class FieldsMismatch(LoanError, ValueError):
    """The fields are not those of the schema, or cannot be."""


class LoanEnded(LoanError, ValueError):
    """The loan was published or given back; its slot is not ours to write."""


class PublishError(ForebayError, ValueError):
    """A loan could not be published."""


class ServiceError(ForebayError):
    """A service cannot go on, or not with this call."""

    service: str


class ServiceClosed(ServiceError, ConnectionError):
    """The other end of the service finished and left; everything it had published came first."""

    outstanding: int
