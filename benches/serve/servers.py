"""Servers as processes: how each is started, when it is ready, what it uses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jobs
from jobs import Job

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
FOREBAY = Path(os.environ.get("FOREBAY_BIN", TARGET / "release/forebay"))
OURS = "forebay"
START_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Kind:
    """A server and the way it is set up."""

    name: str
    program: str
    batch: int = 1
    wait_ms: int = 1
    # Processes that run the model: None for as many as the job says.
    workers: int | None = None


# How each is set up is written on the page: docs/serve-performance.md.
KINDS = (
    Kind(OURS, "", batch=32),
    Kind("mosec", "mosec_server.py", batch=32),
    Kind("mosec, unbatched", "mosec_server.py"),
    Kind("LitServe", "litserve_server.py", batch=32),
    Kind("FastAPI", "fastapi_server.py", workers=1),
    Kind("FastAPI, 2 processes", "fastapi_server.py", workers=2),
)


@dataclass
class Server:
    """One that runs."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    path: str = "/predict"
    start_s: float = 0.0
    bodies: list[Path] = field(default_factory=list)
    content_type: str = "application/json"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, body: bytes, timeout: float = 30.0) -> bytes:
        """The answer's body."""
        request = urllib.request.Request(f"http://{self.address}{self.path}", body)
        request.add_header("Content-Type", self.content_type)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def pids(self) -> list[int]:
        """The process and all that come from it."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, parent = int(stat.parent.name), int(stat.read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(pid)
        found, look = [], [self.process.pid]
        while look:
            pid = look.pop()
            found.append(pid)
            look += children.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """Processor time of all of them, in seconds."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(words[11]) + int(words[12])
        return total / TICKS

    def memory(self) -> dict[str, int]:
        """Bytes: resident in all of them (pages that several share count in each), and each page counted once."""
        found = {"Rss": 0, "Pss": 0}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name = line.split(":", 1)[0]
                    if name in found:
                        found[name] += int(line.split()[1]) * 1024
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(job: Job, kind: Kind, workers: int) -> dict[str, str]:
    """One thread for each process that runs a model: two of them fill the two cores."""
    batch = min(kind.batch, job.batch)
    more = {"JOB": job.name, "BATCH": str(batch), "WAIT_MS": str(kind.wait_ms), "WORKERS": str(workers)}
    more |= {"PYTHONPATH": f"{HERE}:{HERE / 'servers'}", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **more}


def command(kind: Kind, port: int, workers: int) -> list[str]:
    start = [sys.executable, str(HERE / "servers" / kind.program)]
    if kind.program == "mosec_server.py":
        return [*start, "--port", str(port), "--address", "127.0.0.1", "--log-level", "warning"]
    return [*start, str(port), str(workers)]


INPUT = {
    "json": 'type = "tensors"\ntensors = [{ name = "x", dtype = "float32", shape = [4] }]',
    "text": 'type = "text"\ntokenizer = "{tokenizer}"\nmax_tokens = 512',
    "minilm": 'type = "text"\ntokenizer = "{tokenizer}"\nmax_tokens = 256',
    "image": 'type = "image"\nprocessor = "{processor}"',
}
PROCESSOR = """{"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""


def configuration(folder: Path, job: Job, port: int, workers: int, *, program: str = "forebay_worker.py") -> Path:
    """What `forebay serve` is told: its defaults, but no log line for each request, which nobody else writes."""
    (folder / "preprocessor_config.json").write_text(PROCESSOR)
    places = {"{tokenizer}": str(ROOT / "examples/data/tokenizer.json"), "{processor}": "preprocessor_config.json"}
    given = INPUT[job.name]
    for mark, path in places.items():
        given = given.replace(mark, path)
    path = folder / f"{job.name}.toml"
    path.write_text(f"""[server]
listen = "127.0.0.1:{port}"
[log]
level = "warn"
requests = false
[model]
name = "compare"
[model.input]
{given}
[batch]
max_items = {job.batch}
[worker]
command = ["{sys.executable}", "{HERE / "servers" / program}"]
count = {workers}
crash_loop = 1000
backoff_s = 0.001
""")
    return path


@contextlib.contextmanager
def running(  # noqa: PLR0913  what may differ between runs
    job: Job,
    kind: Kind,
    requests: list[bytes],
    *,
    program: str = "forebay_worker.py",
    more: dict[str, str] | None = None,
    ready: Callable[[Server], None] | None = None,
) -> Iterator[Server]:
    """A server that is ready (by default: that answers), until the block ends; then nothing of it is left.

    Of forebay's, `program` is the worker and `more` is added to its environment.
    """
    port, workers = free_port(), kind.workers or job.workers
    with tempfile.TemporaryDirectory(prefix="compare-serve-") as name:
        folder = Path(name)
        if kind.name == OURS:
            workers = job.ours
            told = configuration(folder, job, port, workers, program=program)
            start = [str(FOREBAY), "serve", "--config", str(told)]
        else:
            start = command(kind, port, workers)
        log = folder / "log"
        begin = time.monotonic()
        with log.open("wb") as out:
            env = environment(job, kind, workers) | {"FOREBAY_DIR": name} | (more or {})
            process = subprocess.Popen(start, env=env, stdout=out, stderr=out, start_new_session=True)
        server = Server(process, port, log, bodies=written(folder, job.name, kind, requests))
        server.content_type = content_type(job.name, kind)
        try:
            (ready or until_ready)(server)
            server.start_s = time.monotonic() - begin
            yield server
        finally:
            stop(server)


def content_type(job: str, kind: Kind) -> str:
    if job != "image":
        return "application/json"
    return f"multipart/form-data; boundary={jobs.BOUNDARY}" if kind.name == "LitServe" else "image/jpeg"


def written(folder: Path, job: str, kind: Kind, requests: list[bytes]) -> list[Path]:
    """The bodies as files, for the load generators."""
    place = folder / "bodies"
    place.mkdir()
    as_form = job == "image" and kind.name == "LitServe"
    for index, body in enumerate(requests):
        (place / f"{index:03}").write_bytes(jobs.as_form(body) if as_form else body)
    return sorted(place.iterdir())


def until_ready(server: Server) -> None:
    """Asks until it is answered."""
    body, begin = server.bodies[0].read_bytes(), time.monotonic()
    while True:
        try:
            server.ask(body, timeout=5.0)
        except (OSError, urllib.error.URLError) as error:
            if server.process.poll() is not None or time.monotonic() - begin > START_S:
                said = server.log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RuntimeError(f"it does not answer: {error}; it said: {' / '.join(said)}") from None
            time.sleep(0.02)
        else:
            return


def stop(server: Server) -> None:
    """Asks it to end, then makes sure."""
    pids = server.pids()
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(5)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()
