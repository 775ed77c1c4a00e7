"""A long call that a signal is to end from within, in a process of its own."""

import subprocess
import sys

SCRIPT = """
import os, signal, sys, threading, time
# A shell's background jobs inherit that SIGINT is ignored; then Python does not ask for it either.
signal.signal(signal.SIGINT, signal.default_int_handler)
{prepare}
def call(times):
    {call}

began = time.monotonic()
call(1)
once = time.monotonic() - began
sent = []

def interrupt():
    # From within the call: nothing else here needs a processor.
    began = time.process_time()
    while time.process_time() < began + once / 2:
        time.sleep(0.005)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    call({times})
except KeyboardInterrupt:
    print(time.monotonic() - sent[0], {times} * once)
"""


def after_ctrl_c(prepare: str, call: str, times: int, *arguments: str) -> float:
    """Return for which part of its time the call went on when the signal had come.

    Args:
        prepare: what the call needs.
        call: the call, of ``times`` the work; the time of all of it is told by that of one.
        times: how much work the call to end has.
        arguments: what ``prepare`` finds in ``sys.argv[1:]``.
    """
    script = SCRIPT.format(prepare=prepare, call=call, times=times)
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    waited, whole = map(float, done.stdout.split())
    return waited / whole
