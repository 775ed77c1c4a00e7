"""Tensors from another process on the same host, through shared memory, without a copy.

    import forebay

    for message in forebay.Consumer("tokens"):
        model(**message.torch())

Importing this imports neither NumPy nor torch nor JAX: the first array of a kind does.
"""

import atexit as _atexit
import os as _os
import sys as _sys
from collections.abc import Mapping as _Mapping

if not _sys.platform.startswith("linux"):
    raise ImportError(
        f"forebay runs on Linux only, this is {_sys.platform}: it needs memfd, futex and open-file-description locks; "
        "use a Linux container or virtual machine"
    )

from forebay._errors import (
    AttachError,
    AttachRefused,
    CreateError,
    DeviceError,
    DTypeUnavailable,
    FieldsMismatch,
    ForebayError,
    ForkedError,
    HandleClosed,
    IncompatibleRing,
    InsufficientMemory,
    InvalidOptions,
    LoanEnded,
    LoanError,
    MessageTooLarge,
    NoSuchField,
    NotWritable,
    OwnLoansOutstanding,
    PeerDied,
    PeerSilent,
    PublishError,
    QuotaExceeded,
    ReceiveError,
    ReceiveTimeout,
    RingClosed,
    RingDiffers,
    RingFull,
    RingNotFound,
    RingPoisoned,
    RingReplaced,
    RingTaken,
    SchemaError,
    SchemaMismatch,
    ServiceClosed,
    ServiceError,
    SystemCallError,
    WaitTimeout,
)
from forebay._generate import Generator
from forebay._native import (
    Answer,
    AnswerItem,
    Batch,
    Consumer,
    ConsumerReport,
    ConsumerSet,
    ConsumerStats,
    DeadLetter,
    Field,
    HeldLease,
    HeldSlot,
    Item,
    Loan,
    Message,
    Producer,
    ProducerStats,
    RingReport,
    Schema,
    ServiceClient,
    ServiceServer,
    Takeover,
    Tensor,
    __version__,
    _after_fork_in_child,
    _close_everything,
    _refuse_other_interpreters,
    list_rings,
    torch_routes,
)
from forebay._worker import Worker

_refuse_other_interpreters()
_Mapping.register(Message)
_atexit.register(_close_everything)
_os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = [
    "Answer",
    "AnswerItem",
    "AttachError",
    "AttachRefused",
    "Batch",
    "Consumer",
    "ConsumerReport",
    "ConsumerSet",
    "ConsumerStats",
    "CreateError",
    "DTypeUnavailable",
    "DeadLetter",
    "DeviceError",
    "Field",
    "FieldsMismatch",
    "ForebayError",
    "ForkedError",
    "Generator",
    "HandleClosed",
    "HeldLease",
    "HeldSlot",
    "IncompatibleRing",
    "InsufficientMemory",
    "InvalidOptions",
    "Item",
    "Loan",
    "LoanEnded",
    "LoanError",
    "Message",
    "MessageTooLarge",
    "NoSuchField",
    "NotWritable",
    "OwnLoansOutstanding",
    "PeerDied",
    "PeerSilent",
    "Producer",
    "ProducerStats",
    "PublishError",
    "QuotaExceeded",
    "ReceiveError",
    "ReceiveTimeout",
    "RingClosed",
    "RingDiffers",
    "RingFull",
    "RingNotFound",
    "RingPoisoned",
    "RingReplaced",
    "RingReport",
    "RingTaken",
    "Schema",
    "SchemaError",
    "SchemaMismatch",
    "ServiceClient",
    "ServiceClosed",
    "ServiceError",
    "ServiceServer",
    "SystemCallError",
    "Takeover",
    "Tensor",
    "WaitTimeout",
    "Worker",
    "__version__",
    "list_rings",
    "torch_routes",
]
