"""The interpreter ends while tensors, messages, loans, consumers and producers live, wherever they are kept."""

import pytest

from faulty import run

HELD = {
    "message": "c.recv(10)",
    "tensor": "c.recv(10)['x']",
    "numpy": "c.recv(10)['x'].numpy()",
    "slice": "c.recv(10)['x'].numpy()[2:4]",
    "memoryview": "memoryview(c.recv(10)['x'])",
    "capsule": "c.recv(10)['x'].__dlpack__()",
    "versioned": "c.recv(10)['x'].__dlpack__(max_version=(1, 0))",
    "loan": "p.loan({'x': ('float32', (4,))})",
    "loaned": "p.loan({'x': ('float32', (4,))})['x']",
    "array of a loan": "p.loan({'x': ('float32', (4,))})['x'].numpy()",
    "iterator": "iter(c)",
    "held": "c.held()",
    "many": "c.recv_many(2, 10)",
}

KEPT = {
    "at module level": "kept = {what}",
    "in a cycle": "kept = [{what}]\nkept.append(kept)",
    "in a builtin module": "import builtins\nbuiltins.kept = {what}",
    "in sys": "sys.kept = {what}",
    "in a thread's local": "local = threading.local()\nlocal.kept = {what}",
    "in a thread that ended": """
kept = []
t = threading.Thread(target=lambda: kept.append({what}))
t.start(); t.join()
""",
    "in an object with a finalizer": """
class Keeper:
    def __init__(self, kept):
        self.kept = kept
    def __del__(self):
        self.kept = None
kept = Keeper({what})
kept.cycle = kept
""",
    "in a finalizer at exit": "atexit.register(lambda kept: None, {what})",
}


@pytest.mark.parametrize("where", KEPT)
def test_whatever_lives_at_exit_ends_quietly(ring, where):
    # All kinds of things in one process: they also must not be in each other's way.
    lines = []
    for number, what in enumerate(HELD.values()):
        lines += ["send(2)" if "recv" in what else "", KEPT[where].format(what=what).replace("kept", f"kept{number}")]
        lines += ["try:\n    while True: c.try_recv() or exec('raise StopIteration')\nexcept StopIteration: pass"]
    script = "\n".join(lines).replace("slots=4", "slots=64")
    run(ring, "p.close(); c.close()\n" + BIG + script + "\nprint('end')")


BIG = """
p = forebay.Producer(NAME, directory=DIRECTORY, slots=64, slot_bytes=4096)
c = forebay.Consumer(NAME, directory=DIRECTORY)
"""


def test_torch_tensors_that_live_at_exit_end_quietly(ring):
    pytest.importorskip("torch")
    run(
        ring,
        """
import torch
kept = []
for route in (None, "frombuffer", "legacy"):
    send(2)
    kept.append(c.recv(10)["x"].torch(route=route))
    kept.append(c.recv(10)["x"].torch(route=route).view(2, 4)[0])
cycle = [kept[0], kept[-1][1:]]
cycle.append(cycle)
local = threading.local()
local.kept = kept[2][1:]
sys.kept = kept
""",
    )


@pytest.mark.parametrize("first", ["consumer", "producer", "views"])
@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "raise SystemExit(0)", "gc.disable()"])
def test_the_order_of_ends_does_not_matter(ring, first, end):
    script = "send(2)\nv = c.recv(10)['x'].numpy()\nm = c.recv(10)\nm.ack(); del v, m\n"
    script += "send(2)\nv = c.recv(10)['x'].numpy()\nm = c.recv(10)\n"
    script += {"consumer": "del c", "producer": "del p", "views": "del v, m"}[first]
    # What a consumer that went held unacked waits for another one, by design.
    run(ring, f"{script}\n{end}", left=first == "consumer")


def test_an_exit_handler_may_still_receive_and_send(ring):
    out = run(
        ring,
        """
@atexit.register
def last():
    send()
    with c.recv(10) as m:
        print(m["x"].numpy().sum())
""",
    )
    assert out == "28\n"


def test_what_runs_after_the_exit_hook_gets_an_error_and_no_more(ring):
    out = run(
        ring,
        """
class Late:
    def __del__(self):
        uses = [lambda: c.recv(1), lambda: p.send({"x": b"1"}), lambda: c.held(), lambda: p.stats, lambda: c.fileno()]
        for use in uses:
            try:
                use()
            except Exception as e:
                # By now nothing can be imported any more, and the error may be a plain one.
                os.write(1, f"{type(e).__name__}: {e}\\n".encode())
        c.close(); p.close()
import builtins
builtins.late = Late()
late = builtins.late
""",
    )
    assert "is closed" in out


@pytest.mark.parametrize(
    "wait",
    [
        "c.recv()",
        "c.recv(1000)",
        "next(iter(c))",
        "c.recv_many(3)",
        "forebay.ConsumerSet([forebay.Consumer(NAME, directory=DIRECTORY)]).recv()",
        "forebay.Consumer('not-there', directory=DIRECTORY, timeout_s=None)",
        "p.wait_for_consumers(5)",
        "(send(8), p.send({'x': b'1'}, timeout_s=1000))",
        "(send(1), p.drain())",
    ],
)
def test_a_daemon_thread_that_waits_does_not_keep_the_interpreter_or_break_its_end(ring, wait):
    out = run(
        ring,
        f"""
began = threading.Event()
def work():
    began.set()
    try:
        {wait}
    except (forebay.ForebayError, StopIteration):
        pass
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
    began.wait()
    began.clear()
# So that they wait in the kernel by now, most times: at any moment must be fine.
time.sleep(0.02)
print("end")
""",
        left=True,
    )
    assert out == "end\n"


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_an_end_without_any_cleaning_gives_back_what_was_held(ring, how):
    producer = ring.producer()
    status = {"os._exit(3)": 3, "os.kill(os.getpid(), signal.SIGKILL)": -9, "os.abort()": -6}[how]
    script = f"""
import numpy as np, os, signal, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
c = forebay.Consumer(NAME, directory=DIRECTORY)
print("ready")
kept = c.recv(30)["x"].numpy()
{how}
"""
    process = ring.run(script)
    assert process.stdout.readline() == "ready\n"
    producer.send({"x": b"1"})
    process.communicate(timeout=30)
    assert process.returncode == status
    consumer = ring.consumer()
    message = consumer.recv(10)
    assert (message.sequence, message.attempts) == (1, 1)


def test_a_thread_that_outlives_the_main_thread_goes_on(ring):
    out = run(
        ring,
        """
def work():
    for n in range(5):
        with c.recv(10) as m:
            assert m["x"].numpy().sum() == 28
    print("all")
t = threading.Thread(target=work)
t.start()
send(5)
""",
    )
    assert out == "all\n"
