"""Ctrl-C ends any wait at once; other handlers run during it."""

import signal

import pytest

from conftest import finish

WAITS = {
    "recv": "c.recv()",
    "recv_timeout": "c.recv(1000)",
    "iterate": "next(iter(c))",
    "recv_many": "c.recv_many(3)",
    "set": "forebay.ConsumerSet([c]).recv()",
    "attach": "forebay.Consumer('not-there', directory=DIRECTORY, timeout_s=None)",
    "loan": "[p.send({'x': b'1'}, timeout_s=1000) for _ in range(9)]",
    "wait_for_consumers": "p.wait_for_consumers(3)",
    "drain": "p.send({'x': b'1'}) and p.drain()",
}

SCRIPT = """
import signal
p = forebay.Producer(NAME, directory=DIRECTORY, slots=2, slot_bytes=4096, when_full="block")
c = forebay.Consumer(NAME, directory=DIRECTORY, wait=WAIT)
try:
    print("ready")
    WHAT
except KeyboardInterrupt:
    print("interrupted")
p.discard()
"""


def sleeping(pid):
    """Whether the process's main thread waits in the kernel, as its state says."""
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rsplit(")", 1)[1].split()[0] == "S"


@pytest.mark.parametrize("wait", ["adaptive", "block"])
@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_ends_a_wait(ring, what, wait):
    process = ring.run(SCRIPT.replace("WHAT", WAITS[what]).replace("WAIT", repr(wait)))
    assert process.stdout.readline() == "ready\n"
    while not sleeping(process.pid):
        pass
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"


def test_ctrl_c_ends_a_spinning_wait(ring):
    process = ring.run(SCRIPT.replace("WHAT", "c.recv()").replace("WAIT", "'spin'"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"


def test_a_handler_that_does_not_raise_runs_and_the_wait_goes_on(ring):
    producer = ring.producer()
    process = ring.run("""
import signal
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
c = forebay.Consumer(NAME, directory=DIRECTORY)
print("ready")
print(c.recv().sequence)
""")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "handled\n"
    producer.send({"x": b"1"})
    assert finish(process) == "1\n"


# What waits, and what its handler uses: the handle that is waited in.
CLOSES = {
    "recv": ("c.recv()", "(c.stats, c.held(), c.close())"),
    "recv_timeout": ("c.recv(1000)", "c.close()"),
    "iterate": ("list(c)", "c.close()"),
    "recv_many": ("c.recv_many(3)", "c.close()"),
    "set": ("s.recv()", "s.close()"),
    "loan": ("[p.send({'x': b'1'}, timeout_s=1000) for _ in range(9)]", "(p.stats, p.close())"),
    "wait_for_consumers": ("p.wait_for_consumers(3)", "p.close()"),
    "drain": ("p.send({'x': b'1'}) and p.drain()", "p.close()"),
    "accept": ("client.accept()", "client.close()"),
    "service": ("server.recv()", "(server.outstanding, server.close())"),
    "answer": ("client.recv()", "(client.outstanding, client.close())"),
}


@pytest.mark.parametrize("wait", ["adaptive", "spin"])
@pytest.mark.parametrize("what", CLOSES)
def test_a_handler_may_use_and_close_what_is_waited_in(ring, what, wait):
    waits, uses = CLOSES[what]
    process = ring.run(f"""
p = forebay.Producer(NAME, directory=DIRECTORY, slots=2, slot_bytes=4096, when_full="block", wait={wait!r})
c = forebay.Consumer(NAME, directory=DIRECTORY, wait={wait!r})
if {what == "set"}:
    s = forebay.ConsumerSet([c])
client = forebay.ServiceClient(NAME + "-s", directory=DIRECTORY, wait={wait!r})
if {what in ("service", "answer")}:
    server = forebay.ServiceServer(NAME + "-s", directory=DIRECTORY, wait={wait!r})
    client.accept()
signal.signal(signal.SIGUSR1, lambda *_: {uses})
try:
    print("ready")
    {waits}
except forebay.HandleClosed:
    print("closed")
client.close()
p.close()
forebay.Producer(NAME, directory=DIRECTORY, fresh=True, slots=1, slot_bytes=64).discard()
""")
    assert process.stdout.readline() == "ready\n"
    if wait != "spin":
        while not sleeping(process.pid):
            pass
    process.send_signal(signal.SIGUSR1)
    assert finish(process) == "closed\n"
