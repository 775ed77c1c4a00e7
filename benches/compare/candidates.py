"""Who is compared: for each job, forebay, the floor, and the rivals, most important first."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Candidate:
    """One way to do the job."""

    name: str
    label: str
    waits: str  # how the receiver waits: "polls" or "sleeps"
    payload: str  # what happens to the payload on its way
    result: str = "bytes"  # what the receiver has in the end
    sender: str = ""  # the sender's name, where it is not this one's
    threads: bool = False  # has threads of its own beside the sender
    package: str = ""  # whose version is printed
    rate_only: bool = False
    sizes: tuple[int, ...] = (64, 4 * KIB, MIB, 64 * MIB)


@dataclass(frozen=True)
class Effort:
    """How many messages of one size; the same for every candidate of a job."""

    slots: int
    warm: int
    count: int
    rate: int

    def quick(self) -> Effort:
        """Less of each, to see that everything runs."""
        return Effort(self.slots, max(self.warm // 5, 2), max(self.count // 10, 3), self.rate // 10)


@dataclass(frozen=True)
class Job:
    """What is to be done, by whom, how often."""

    key: str
    title: str
    kind: str  # which program each half is: "rust", "mixed", "python"
    floor: str
    references: dict[str, str]  # forebay, by how the receiver waits
    gap_ns: int
    efforts: dict[int, Effort]
    candidates: tuple[Candidate, ...]


IN_PLACE = "written in place, read in place"
BOTH_COPIES = "copied in, copied out"

JOBS = (
    Job(
        "rust-rust",
        "Rust to Rust",
        "rust",
        "minimal",
        {"polls": "forebay"},
        5_000,
        {
            64: Effort(64, 2000, 20_000, 2_000_000),
            4 * KIB: Effort(64, 2000, 20_000, 1_000_000),
            MIB: Effort(16, 500, 5_000, 200_000),
            64 * MIB: Effort(4, 20, 500, 20_000),
        },
        (
            Candidate("forebay", "forebay", "polls", IN_PLACE),
            Candidate("minimal", "floor: a minimal ring", "polls", IN_PLACE),
            Candidate(
                "ringfire",
                "ringfire",
                "polls",
                "64 B: copied in and out; more: in place, and lost when the arena comes round",
                package="ringfire",
            ),
            Candidate("iceoryx2", "iceoryx2", "polls", IN_PLACE, package="iceoryx2"),
            Candidate("shared_memory", "`shared_memory` and a flag", "polls", IN_PLACE, package="shared_memory"),
        ),
    ),
    Job(
        "rust-python",
        "Rust to Python",
        "mixed",
        "minimal-numpy",
        {"polls": "forebay-numpy", "sleeps": "forebay-block"},
        20_000,
        {
            64: Effort(64, 500, 5_000, 50_000),
            4 * KIB: Effort(64, 500, 5_000, 50_000),
            MIB: Effort(16, 100, 1_000, 10_000),
            64 * MIB: Effort(4, 20, 300, 5_000),
        },
        (
            Candidate("forebay-numpy", "forebay → NumPy", "polls", IN_PLACE, "array, which keeps its slot", "forebay"),
            Candidate(
                "minimal-numpy", "floor: C, np.frombuffer", "polls", IN_PLACE, "array, which nothing keeps", "minimal"
            ),
            Candidate("forebay-torch", "forebay → torch", "polls", IN_PLACE, "tensor, which keeps its slot", "forebay"),
            Candidate(
                "minimal-torch", "floor, torch.from_numpy", "polls", IN_PLACE, "tensor, which nothing keeps", "minimal"
            ),
            Candidate(
                "iceoryx2-numpy",
                "iceoryx2 → NumPy",
                "polls",
                IN_PLACE,
                "array, which does not keep its sample",
                "iceoryx2",
                package="iceoryx2",
            ),
            Candidate(
                "forebay-block",
                "forebay → NumPy, asleep",
                "sleeps",
                IN_PLACE,
                "array, which keeps its slot",
                "forebay",
            ),
            Candidate(
                "grpc",
                "gRPC, Unix socket, tonic → grpcio",
                "sleeps",
                "copied by the kernel and by gRPC",
                "array of the bytes that gRPC has",
                package="grpcio",
                sizes=(64, 4 * KIB, MIB),  # the messages that the others need for a figure would take it minutes
            ),
            Candidate(
                "forebay-many",
                "forebay → NumPy, recv_many(64)",
                "polls",
                IN_PLACE,
                "as above",
                "forebay",
                rate_only=True,
            ),
        ),
    ),
    Job(
        "python-python",
        "Python to Python",
        "python",
        "",
        {"polls": "forebay-spin", "sleeps": "forebay-block"},
        20_000,
        {
            64: Effort(64, 100, 1_000, 5_000),
            4 * KIB: Effort(64, 100, 1_000, 5_000),
            MIB: Effort(16, 10, 100, 300),
            64 * MIB: Effort(4, 1, 6, 0),
        },
        (
            Candidate("forebay-spin", "forebay", "polls", IN_PLACE, "array"),
            Candidate("forebay-block", "forebay, asleep", "sleeps", IN_PLACE, "array"),
            Candidate("forebay-send", "forebay, `send`", "polls", "copied in, read in place", "array"),
            Candidate("iceoryx2", "iceoryx2", "polls", IN_PLACE, "array", package="iceoryx2"),
            Candidate(
                "pyzmq",
                "pyzmq, ipc",
                "sleeps",
                "copied in and out by the kernel",
                "array",
                threads=True,
                package="pyzmq",
            ),
            Candidate("mp-queue", "multiprocessing.Queue", "sleeps", "pickled", "array", threads=True),
            Candidate("mp-pipe", "multiprocessing.Pipe", "sleeps", BOTH_COPIES, "the same array again"),
            Candidate(
                "mp-shared-memory", "shared_memory and semaphores", "sleeps", IN_PLACE, "array, which nothing keeps"
            ),
            Candidate(
                "faster-fifo", "faster-fifo", "sleeps", "pickled, copied in and out", "array", package="faster-fifo"
            ),
            Candidate(
                "torch-queue",
                "torch.multiprocessing.Queue",
                "sleeps",
                "copied into a file of its own, mapped",
                "tensor",
                threads=True,
                package="torch",
            ),
            Candidate(
                "grpc",
                "gRPC, Unix socket",
                "sleeps",
                "copied by the kernel and by gRPC",
                "array",
                threads=True,
                package="grpcio",
            ),
            Candidate(
                "spdl",
                "SPDL arena",
                "sleeps",
                "64 B: pickled; from 4 KiB: copied in, read in place",
                "array",
                threads=True,
                package="spdl",
            ),
            Candidate(
                "zenoh",
                "zenoh, shared memory",
                "sleeps",
                "written in place, copied out",
                "array",
                threads=True,
                package="eclipse-zenoh",
            ),
            Candidate(
                "ray",
                "Ray, compiled graph",
                "sleeps",
                "pickled without copies of arrays, copied in",
                "array",
                threads=True,
                package="ray",
            ),
        ),
    ),
)
