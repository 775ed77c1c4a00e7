"""The main job, from end to end, checked: text in, torch tensors out, no copy in between.

`forebay feed` tokenizes a corpus into a ring in one process. A second process (this file again, with --consume)
receives every batch as torch tensors. When all of it has arrived, the parent compares every id with what the Python
package `tokenizers` gives for the same lines, and prints a table. Exit code 0 means that every check held.

    python examples/demo/run.py [--passes N] [FILE --tokenizer PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "examples/data"
FOREBAY = pathlib.Path(os.environ.get("FOREBAY_BIN", ROOT / "target/release/forebay"))
RING = "demo"
MAX_LENGTH = 128
# Nothing in the demo takes this long; a wait that does is a failure, not a hang.
PATIENCE_S = 120
# Ends the consumer's report while it holds the last message.
HOLDING = "holding"


def consume(rows_expected: int, out: pathlib.Path) -> None:
    """Receives until `rows_expected` rows have come and leaves what it saw in `out`, for the parent to check.

    The receive path is what a model server would do, and nothing else: checking waits until everything is here.
    """
    import torch

    import forebay

    now_ns = lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC)  # noqa: E731, a name for one clock
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    waited_ns: list[int] = []
    outside = rows = payload_bytes = 0
    last = None
    with forebay.Consumer(RING, timeout_s=PATIENCE_S) as consumer:
        low, high = consumer.data_range
        start_ns = now_ns()
        while rows < rows_expected:
            asked_ns = now_ns()
            message = consumer.recv(timeout_s=PATIENCE_S)
            tensors = message.torch()
            here_ns = now_ns()
            if message.timestamp_ns >= asked_ns:
                waited_ns.append(here_ns - message.timestamp_ns)
            for tensor in tensors.values():
                at = tensor.data_ptr()
                outside += not low <= at <= at + tensor.nbytes <= high
                payload_bytes += tensor.nbytes
            ids, mask = tensors["input_ids"], tensors["attention_mask"]
            rows += ids.shape[0]
            # The one copy in this program, for the check afterwards.
            seen.append((message.correlation_id, ids.to(torch.int32), mask.to(torch.bool)))
            if rows >= rows_expected:
                last = message
            del message, tensors, tensor, ids, mask
        seconds = (now_ns() - start_ns) / 1e9
        # The feed cannot end while this message is not released: time for the parent to read the slot words.
        print(HOLDING, flush=True)
        sys.stdin.readline()
        del last
        surplus = sum(1 for _ in consumer)
    torch.save(
        {
            "seen": seen,
            "seconds": seconds,
            "waited_ns": waited_ns,
            "outside": outside,
            "payload_bytes": payload_bytes,
            "surplus": surplus,
        },
        out,
    )


def expected_ids(lines: list[str], tokenizer: pathlib.Path) -> list[list[int]]:
    """What the Python package gives, without the padding that each batch chooses anew."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(tokenizer))
    reference.enable_truncation(MAX_LENGTH)
    reference.no_padding()
    return [encoding.ids for encoding in reference.encode_batch(lines)]


def compare(seen: list, expected: list[list[int]], passes: int) -> tuple[list[str], int]:
    """What differs, and how many tokens were compared."""
    wrong: list[str] = []
    times = [0] * len(expected)
    tokens = 0
    for first, ids, mask in seen:
        for row, (row_ids, row_mask) in enumerate(zip(ids.tolist(), mask.tolist())):
            line = (first + row) % len(expected)
            times[line] += 1
            length = sum(row_mask)
            tokens += length
            if not all(row_mask[:length]):
                wrong.append(f"line {line}: a hole in the attention mask")
            if row_ids[:length] != expected[line]:
                wrong.append(f"line {line}: ids {row_ids[:length]}, expected {expected[line]}")
    missed = [line for line, count in enumerate(times) if count != passes]
    if missed:
        wrong.append(f"{len(missed)} lines did not arrive exactly once a pass, the first is {missed[0]}")
    return wrong, tokens


def held_slots(environment: dict[str, str]) -> dict[str, int]:
    """How many slots are in which state, as the slot words say."""
    listing = subprocess.run(
        [FOREBAY, "ls", RING, "--no-rates", "--json"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    (ring,) = json.loads(listing.stdout)
    return ring["slots"]


def rows_of(text: str) -> list[str]:
    """The lines that become rows, by the rules of `forebay feed`: LF or CR LF ends a line, blank ones are passed over."""
    *ended, last = text.removeprefix("\ufeff").split("\n")
    lines = [line.removesuffix("\r") for line in ended] + [last]
    # White space as Unicode defines it; Python's strip() also takes the four separators U+001C to U+001F.
    return [line for line in lines if line.strip() or any("\x1c" <= character <= "\x1f" for character in line)]


def end(processes: list[subprocess.Popen[str]], folder: pathlib.Path, environment: dict[str, str]) -> None:
    """Leaves no process, no folder and no shared memory behind, however the demo ended."""
    for process in processes:
        process.kill()
        process.wait()
    subprocess.run([FOREBAY, "clean"], env=environment, check=False, capture_output=True, timeout=PATIENCE_S)
    shutil.rmtree(folder)


def quantile(sorted_values: list[int], q: float) -> float:
    """The smallest value that at least a share `q` of all does not exceed, in microseconds."""
    at = max(0, -(-int(q * 1000) * len(sorted_values) // 1000) - 1)
    return sorted_values[at] / 1e3


def main() -> int:
    """Runs both processes, checks, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="?", type=pathlib.Path, default=DATA / "kjv.txt", metavar="FILE")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=DATA / "tokenizer.json", metavar="PATH")
    parser.add_argument("--passes", type=int, default=10, metavar="N", help="how often the corpus is fed [default: 10]")
    parser.add_argument("--consume", nargs=2, metavar=("ROWS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        consume(int(arguments.consume[0]), pathlib.Path(arguments.consume[1]))
        return 0

    lines = rows_of(arguments.corpus.read_bytes().decode())
    rows = len(lines) * arguments.passes
    if rows < 1:
        parser.error(f"nothing to feed: {len(lines)} lines, {arguments.passes} passes")
    # Private, so that a ring of the same name elsewhere does not matter, and short, because a socket lives in it.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="forebay-demo-"))
    environment = {**os.environ, "FOREBAY_DIR": str(folder)}
    out = folder / "seen.pt"
    feed = [FOREBAY, "feed", arguments.corpus, "--tokenizer", arguments.tokenizer, "--ring", RING]
    feed += ["--batch", "32", "--max-length", str(MAX_LENGTH), "--repeat", str(arguments.passes)]
    feed += ["--wait-for", "1", "--progress", "--json"]
    print("$", *(str(word).removeprefix(f"{pathlib.Path.cwd()}/") for word in feed), flush=True)
    processes = []
    try:
        producer = subprocess.Popen(feed, env=environment, stdout=subprocess.PIPE, text=True)
        processes.append(producer)
        consumer = subprocess.Popen(
            [sys.executable, __file__, "--consume", str(rows), str(out)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(consumer)
        # A feed that fails has said why; there is nothing to receive then.
        threading.Thread(target=lambda: producer.wait() and consumer.kill(), daemon=True).start()
        assert consumer.stdout is not None
        if consumer.stdout.readline().strip() != HOLDING:
            print(f"FAILED: the consumer ended with exit code {consumer.wait(PATIENCE_S)}", file=sys.stderr)
            return 1
        slots = held_slots(environment)
        consumer.communicate("go on\n", timeout=PATIENCE_S)
        summary = json.loads(producer.communicate(timeout=PATIENCE_S)[0])
        codes = {"forebay feed": producer.returncode, "the consumer": consumer.returncode}
        import torch

        result = torch.load(out)
    finally:
        end(processes, folder, environment)

    print(f"comparing {rows:,} rows with the Python package tokenizers", flush=True)
    wrong, tokens = compare(result["seen"], expected_ids(lines, arguments.tokenizer), arguments.passes)
    wrong += [f"{name} ended with exit code {code}" for name, code in codes.items() if code]
    copied = result["payload_bytes"] if result["outside"] else 0
    # The consumer held one message while the words were read; all others must be free for the producer.
    leaked = sum(slots.values()) - slots.get("free", 0) - slots.get("done", 0) - 1 + summary["outstanding"]
    if leaked:
        wrong.append(f"slots after the last message: {slots}, outstanding at the end: {summary['outstanding']}")
    if result["outside"]:
        wrong.append(f"{result['outside']} tensors lie outside of the ring's memory: they were copied")
    if result["surplus"]:
        wrong.append(f"{result['surplus']} messages came after the last row")
    if summary["messages"] != len(result["seen"]):
        wrong.append(f"{summary['messages']} messages published, {len(result['seen'])} received")

    seconds, waited = result["seconds"], sorted(result["waited_ns"])
    latency = " / ".join(f"{quantile(waited, q):.1f}" if waited else "-" for q in (0.5, 0.99, 0.999))
    table = [
        ("messages", f"{len(result['seen']):,} of up to 32 rows"),
        ("lines", f"{len(lines):,} x {arguments.passes} passes"),
        ("tokens", f"{tokens:,}, all equal to the Python package" if not wrong else f"{tokens:,}"),
        ("tokens/s", f"{tokens / seconds:,.0f}"),
        ("MB/s", f"{result['payload_bytes'] / seconds / 1e6:,.1f} of tensors"),
        ("hand-over p50/p99/p99.9", f"{latency} us"),
        ("payload bytes copied", f"{copied} between publish and tensor"),
        ("slots leaked", f"{leaked}"),
    ]
    width = max(len(name) for name, _ in table)
    print(*(f"  {name:<{width}}  {value}" for name, value in table), sep="\n")
    print(
        f"Hand-over: from publish() in Rust to both torch tensors in Python, waking the sleeping consumer included;\n"
        f"over the {len(waited):,} messages that it was already waiting for, while all cores tokenize."
    )
    for line in wrong[:10]:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
