"""Looking at rings from outside."""

import os

import numpy as np
import pytest

import forebay


def test_a_ring_is_listed_with_who_holds_what(ring):
    producer = ring.producer(label="the source")
    consumer = ring.consumer(label="the sink")
    for _ in range(3):
        producer.send({"x": np.zeros(4)})
    kept = consumer.recv(10)
    (report,) = forebay.list_rings(ring.directory)
    assert (report.name, report.alive, report.pid, report.label) == (ring.name, True, os.getpid(), "the source")
    assert (report.kind, report.backing, report.state, report.problem) == ("queue", "posix", "open", None)
    assert (report.published, report.depth, report.bytes) == (3, 2, 192)
    assert report.slots["full"] == 2
    assert report.slots["claimed"] == 1
    (member,) = report.consumers
    assert (member.label, member.alive, member.state, member.received) == ("the sink", True, "active", 1)
    (held,) = member.held
    assert (held.sequence, held.slot, held.acked) == (1, kept.slot, False)
    kept.ack()
    assert forebay.list_rings(ring.directory)[0].consumers[0].held[0].acked
    assert ring.name in repr(report)


def test_an_empty_and_an_impossible_directory(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    assert forebay.list_rings(empty) == []
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OSError, match="file") as caught:
        forebay.list_rings(file)
    assert isinstance(caught.value, forebay.SystemCallError)
    assert caught.value.errno


def test_the_numa_node_of_the_slots_is_chosen_and_shown(ring):
    producer = ring.producer(numa=0, slots=4, slot_bytes=1 << 16)
    (shown,) = forebay.list_rings(ring.directory)
    assert shown.numa_node == 0 or any("NUMA node" in note for note in producer.notes)
    assert producer.__getnewargs_ex__()[1]["numa"] == 0
    with pytest.raises(ValueError, match="expected a node"):
        ring.producer(numa="gpu")
    with pytest.raises(forebay.InvalidOptions, match="no gpu:4711"):
        forebay.Producer(f"{ring.name}-b", directory=ring.directory, numa="gpu:4711")
