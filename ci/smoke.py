"""Tries an installed wheel with nothing else installed: no NumPy, no torch, no checkout."""

import os
import subprocess
import sysconfig
import tempfile

import forebay

with tempfile.TemporaryDirectory() as folder:
    os.environ["FOREBAY_DIR"] = folder
    producer = forebay.Producer("smoke", slots=2, slot_bytes=4096)
    consumer = forebay.Consumer("smoke", timeout_s=10)
    loan = producer.loan({"x": ("uint8", (3,))})
    memoryview(loan["x"])[:] = b"abc"
    loan.publish(correlation_id=7)
    message = consumer.recv(timeout_s=10)
    assert bytes(memoryview(message["x"])) == b"abc" and message.correlation_id == 7
    program = os.path.join(sysconfig.get_path("scripts"), "forebay")
    listing = subprocess.run([program, "ls", "--no-rates"], check=True, capture_output=True, text=True)
    assert "smoke" in listing.stdout, listing.stdout
    del message
    consumer.close()
    producer.close()
print(f"forebay {forebay.__version__} works with nothing else installed; so does {program}")
