"""Many threads, forks and signals in the middle of waits, other interpreters, descriptors closed behind its back."""

import pytest

import forebay
from faulty import run


def test_many_threads_share_one_consumer_and_one_producer(ring):
    out = run(
        ring,
        """
lock, got = threading.Lock(), []
def receive():
    while True:
        try:
            with c.recv(5) as m:
                assert m["x"].numpy().sum() == 28
                with lock:
                    got.append(m.sequence)
            # Its memory too, or six threads that wait keep six slots.
            del m
        except forebay.RingClosed:
            return
threads = [threading.Thread(target=receive) for _ in range(6)]
senders = [threading.Thread(target=send, args=(50,)) for _ in range(4)]
looks = threading.Thread(target=lambda: [(c.held(), c.stats, p.stats, p.consumers) for _ in range(200)])
for t in threads + senders + [looks]: t.start()
for t in senders: t.join()
p.drain(30)
looks.join()
p.close()
for t in threads: t.join()
print(sorted(got) == list(range(1, 201)))
""",
    )
    assert out == "True\n"


def test_closing_while_other_threads_wait_ends_their_waits(ring):
    out = run(
        ring,
        """
ended = []
def wait():
    try:
        c.recv()
    except forebay.ForebayError as e:
        ended.append(type(e).__name__)
threads = [threading.Thread(target=wait) for _ in range(4)]
for t in threads: t.start()
c.close()
for t in threads: t.join()
print(ended)
""",
    )
    assert out == str(["HandleClosed"] * 4) + "\n"


@pytest.mark.parametrize(("timeout_s", "ended"), [(0.5, "ReceiveTimeout"), (None, "Stop")])
def test_a_wait_that_gave_way_to_one_without_end_ends_when_it_should(ring, timeout_s, ended):
    out = run(
        ring,
        f"""
class Stop(Exception): pass
timeout_s = {timeout_s}
got = []
long = threading.Thread(target=lambda: got.append(c.recv().sequence))
def handler(*_):
    # The first time within the wait of this thread, which so began before the other one.
    if long.ident is None:
        long.start()
    elif timeout_s is None:
        raise Stop
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.2)
try:
    c.recv(timeout_s)
except (forebay.ReceiveTimeout, Stop) as e:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(type(e).__name__, long.is_alive(), got)
send()
long.join()
print(got)
""",
    )
    assert out == f"{ended} True []\n[1]\n"


def test_a_fork_while_a_thread_waits_leaves_both_processes_whole(ring):
    out = run(
        ring,
        """
got = []
t = threading.Thread(target=lambda: got.append(c.recv(20).sequence))
t.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        # The thread that waited is not here; nothing of the parent's may be used or hang.
        for use in (lambda: c.recv(1), lambda: p.send({"x": b"1"}), c.close, p.close, gc.collect):
            try:
                use()
            except forebay.ForkedError:
                pass
        mine = forebay.Producer(NAME + "-child", directory=DIRECTORY, slots=1, slot_bytes=64)
        mine.send({"x": b"1"})
        assert forebay.Consumer(NAME + "-child", directory=DIRECTORY).recv(10).sequence == 1
        mine.discard()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
send()
t.join()
print(got)
""",
    )
    assert out == "[1]\n"


WAITS = {
    "recv": "c.recv(20)",
    "recv_many": "c.recv_many(2, 20)",
    "iterate": "next(iter(c))",
    "set": "s.recv(20)",
    "loan": "p.loan({'x': ('uint8', (1,))})",
    "send": "p.send({'x': b'1'})",
    "drain": "p.drain(20)",
    "wait_for_consumers": "p.wait_for_consumers(9, 20)",
    "attach": "forebay.Consumer('not-there', directory=DIRECTORY, timeout_s=20)",
}


@pytest.mark.parametrize("what", WAITS)
def test_a_handler_that_raises_ends_the_wait_and_nothing_is_lost(ring, what):
    full = what in {"loan", "send", "drain"}
    out = run(
        ring,
        f"""
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
other = forebay.Producer(NAME + "-o", directory=DIRECTORY, slots=2, slot_bytes=4096)
s = forebay.ConsumerSet([forebay.Consumer(NAME + "-o", directory=DIRECTORY)])
if {full}: send(8)
for n in range(4):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        {WAITS[what]}
        print("not stopped")
    except Stop:
        pass
if not {full}: send(8)
other.send({{"x": b"1"}})
print([c.recv(10).sequence for _ in range(8)], s.recv(10)[1].sequence)
p.drain(10)
""",
    )
    assert out == "[1, 2, 3, 4, 5, 6, 7, 8] 1\n"


def test_signals_every_millisecond_lose_nothing(ring):
    out = run(
        ring,
        """
count = 0
def handler(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
t = threading.Thread(target=lambda: [(send(), time.sleep(0.002)) for _ in range(100)])
t.start()
got = [c.recv(10).sequence for _ in range(100)]
start = time.monotonic()
try:
    c.recv(0.2)
except forebay.ReceiveTimeout:
    assert time.monotonic() - start >= 0.2
t.join()
signal.setitimer(signal.ITIMER_REAL, 0)
print(got == list(range(1, 101)), count > 20)
""",
    )
    assert out == "True True\n"


def test_ctrl_c_at_any_moment_of_a_loop_loses_nothing(ring):
    out = run(
        ring,
        """
done, interrupts = [], 0
c.close()
# A message that is dropped unlooked at counts as dealt with, unless acking is by hand.
c = forebay.Consumer(NAME, directory=DIRECTORY, ack="manual")
def kill():
    while len(set(done)) < 100:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.003)
def publish():
    for _ in range(100): send()
# A mask is a thread's own: only until the threads are started nobody is interrupted.
go = threading.Event()
for work in (publish, lambda: (go.wait(), kill())):
    threading.Thread(target=work, daemon=True).start()
while len(set(done)) < 100:
    try:
        go.set()
        while len(set(done)) < 100:
            m = c.recv(10)
            n = m.sequence
            # Interrupted anywhere in here it comes back, perhaps once too often, never once too few.
            done.append(m.sequence)
            m.ack()
            del m
    except KeyboardInterrupt:
        interrupts += 1
        # The next one may come at once; then the loop above begins anew.
        m = None
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(sorted(set(done)) == list(range(1, 101)))
""".replace("slots=4", "slots=8"),
        env={"PYTHONUNBUFFERED": "1"},
    )
    assert out == "True\n"


def test_another_interpreter_of_the_process_refuses_the_import_and_the_first_goes_on(ring):
    pytest.importorskip("_xxsubinterpreters")
    out = run(
        ring,
        """
import _xxsubinterpreters as interpreters
IMPORT = "try:\\n import forebay\\nexcept ImportError as e: print('ImportError', e, flush=True)"
send(2)
kept = c.recv(10)["x"].numpy()
for _ in range(3):
    other = interpreters.create()
    try:
        interpreters.run_string(other, IMPORT)
    finally:
        interpreters.destroy(other)
with c.recv(10) as m:
    print(m.sequence, kept.sum())
""",
    )
    lines = out.splitlines()
    assert [line.split(" ")[0] for line in lines[:3]] == ["ImportError"] * 3
    assert lines[3] == "2 28"


@pytest.mark.parametrize("kind", ["queue", "broadcast"])
def test_descriptors_that_are_closed_and_used_by_others_are_left_alone(ring, kind):
    out = run(
        ring,
        """
import socket
c.close(); p.close()
p = forebay.Producer(NAME, directory=DIRECTORY, slots=8, slot_bytes=4096, max_attempts=0, kind=KIND)
c = forebay.Consumer(NAME, directory=DIRECTORY)
p.wait_for_consumers(1, 30)
def get(timeout_s):
    with c.recv(timeout_s) as m:
        assert m["x"].numpy().sum() == 28
        return m.sequence
send(2)
kept = [c.recv(10)["x"].numpy()]
assert get(10) == 2
c.fileno()
loan = p.loan({"x": ("float32", (4,))})
os.closerange(3, 1024)
# As a daemonizer does; then the program opens its own files and sockets, which get the old numbers.
files = [open(f"{DIRECTORY}/own-{n}", "w+b", buffering=0) for n in range(60)]
assert files[0].fileno() == 3
sockets = [s for _ in range(20) for s in socket.socketpair()]
for f in files: f.write(b"mine")
for s in sockets: s.setblocking(False)
went_on = 0
for _ in range(20):
    try:
        send()
        went_on += get(10) > 2
    except forebay.ForebayError as e:
        print(type(e).__name__, e)
try:
    c.recv(0.2)
except forebay.ForebayError:
    pass
else:
    print("nothing was sent")
assert kept[0].tolist() == list(range(8))
for use in (c.held, lambda: c.stats, lambda: p.stats, c.try_recv, c.fileno, loan.publish):
    try:
        use()
    except forebay.ForebayError:
        pass
for late in (lambda: forebay.Consumer(NAME, directory=DIRECTORY, timeout_s=0.2), lambda: p.drain(0.1)):
    try:
        late()
    except forebay.ForebayError:
        pass
kept.clear()
del loan, kept
c.close()
p.close()
del c, p
gc.collect()
for f in files:
    f.seek(0)
    assert f.read() == b"mine", f.name
    assert os.fstat(f.fileno()).st_ino == os.stat(f.name).st_ino
    f.close()
    os.unlink(f.name)
for s in sockets:
    try:
        print("a socket says", s.recv(16))
    except BlockingIOError:
        pass
for s in sockets: s.close()
print(went_on, "went on")
""".replace("KIND", repr(kind)),
        left=True,
    )
    assert out == "20 went on\n"
    # What it could not remove without its folder's descriptor is found by the next of that name.
    forebay.Producer(ring.name, directory=ring.directory, fresh=True, slots=1, slot_bytes=64).discard()


@pytest.mark.parametrize("use", ["c.try_recv()", "c.recv(0)", "c.recv()"])
def test_what_runs_while_an_error_is_made_may_use_the_consumer(ring, use):
    out = run(
        ring,
        f"""
# In the place of the collector, which may run what it likes there.
forebay.RingClosed.__init__ = lambda *_: seen.append(c.stats.received)
seen = []
p.close()
try:
    {use}
except forebay.RingClosed:
    print(seen)
""",
    )
    assert out == "[0]\n"


@pytest.mark.parametrize("use", ["p.send({'x': bytes(1 << 17)})", "p.loan({'x': ('uint8', 1 << 17)})"])
def test_what_runs_while_an_error_is_made_may_use_the_producer(ring, use):
    out = run(
        ring,
        f"""
forebay.MessageTooLarge.__init__ = lambda *_: seen.append(p.stats.published)
seen = []
try:
    {use}
except forebay.MessageTooLarge:
    print(seen)
""",
    )
    assert out == "[0]\n"
