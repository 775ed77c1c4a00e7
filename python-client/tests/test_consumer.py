"""Receiving: waiting, threads, closing, quotas, sets, schemas, pickles."""

import copy
import gc
import pickle
import select
import threading

import numpy as np
import pytest

import forebay
from conftest import finish


def test_a_message_is_a_mapping(ring):
    producer, consumer = ring.pair(timestamps=True)
    producer.send({"a": np.zeros(2), "b": np.ones((3, 1), dtype="int8")}, correlation_id=5, user=b"\0\xff")
    message = consumer.recv(10)
    assert list(message) == message.keys() == ["a", "b"]
    assert len(message) == 2
    assert "a" in message
    assert "c" not in message
    assert 1 not in message
    assert [tensor.shape for tensor in message.values()] == [(2,), (3, 1)]
    assert [name for name, _ in message.items()] == ["a", "b"]
    assert message[1].dtype == "int8"
    assert message.get("a").shape == (2,)
    assert message.get("c") is None
    assert message.get("c", 5) == 5
    assert {name: array.shape for name, array in dict(**message.numpy()).items()} == {"a": (2,), "b": (3, 1)}
    assert {name: array.shape for name, array in {**message}.items()} == {"a": (2,), "b": (3, 1)}
    assert (message.correlation_id, message.user, message.attempts, message.sequence) == (5, b"\0\xff", 0, 1)
    assert message.timestamp_ns > 0
    assert message.held_for_s >= 0
    assert "a: float64[2], b: int8[3, 1]" in repr(message)
    with pytest.raises(KeyError, match='no field "c"; there is a, b') as caught:
        message["c"]
    assert isinstance(caught.value, forebay.NoSuchField)
    with pytest.raises(IndexError):
        message[2]
    with pytest.raises(TypeError):
        message[1.5]


def test_a_message_without_tensors_or_stamp(ring):
    producer, consumer = ring.pair()
    with producer.loan({}) as loan:
        loan.publish(correlation_id=3)
    message = consumer.recv(10)
    assert (len(message), message.correlation_id, message.timestamp_ns, message.user) == (0, 3, None, b"")
    assert message.torch() == message.numpy() == {}


def test_try_recv_does_not_wait(ring):
    producer, consumer = ring.pair()
    assert consumer.try_recv() is None
    producer.send({"x": np.zeros(1)})
    assert consumer.try_recv().sequence == 1


def test_timeouts_are_timeouts(ring):
    _producer, consumer = ring.pair()
    with pytest.raises(TimeoutError) as caught:
        consumer.recv(timeout_s=0.02)
    assert isinstance(caught.value, forebay.ReceiveTimeout)
    assert caught.value.ring == ring.name
    assert caught.value.waited_s >= 0.02
    with pytest.raises(forebay.ReceiveTimeout):
        consumer.recv(0)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout_s"):
            consumer.recv(wrong)


def test_recv_many_takes_what_is_there(ring):
    producer, consumer = ring.pair(slots=8)
    for n in range(5):
        producer.send({"x": np.array([n])})
    assert [message.sequence for message in consumer.recv_many(3, 10)] == [1, 2, 3]
    assert [message.sequence for message in consumer.recv_many(3, 10)] == [4, 5]
    with pytest.raises(ValueError, match="limit"):
        consumer.recv_many(0)


def test_a_waiting_thread_gets_the_message_and_others_may_look_meanwhile(ring):
    producer, consumer = ring.pair()
    got = []
    thread = threading.Thread(target=lambda: got.append(consumer.recv(30).sequence))
    thread.start()
    for _ in range(20):
        assert consumer.held() == []
        assert consumer.stats.received == 0
        assert consumer.try_recv() is None
    producer.send({"x": np.zeros(1)})
    thread.join()
    assert got == [1]


def test_close_ends_a_wait_in_another_thread(ring):
    _producer, consumer = ring.pair()
    caught = []

    def wait():
        try:
            consumer.recv()
        except forebay.HandleClosed as e:
            caught.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    consumer.close()
    thread.join()
    assert caught[0].ring == ring.name


def test_use_after_close(ring):
    _producer, consumer = ring.pair()
    consumer.close()
    consumer.close()
    assert consumer.closed
    for use in (consumer.recv, consumer.try_recv, consumer.held, consumer.fileno, lambda: next(iter(consumer))):
        with pytest.raises(ValueError, match="is closed") as caught:
            use()
        assert isinstance(caught.value, forebay.HandleClosed)
    assert "closed" in repr(consumer)


def test_the_end_of_a_ring(ring):
    producer, consumer = ring.pair()
    producer.send({"x": np.zeros(1)})
    producer.close()
    assert consumer.recv(10).sequence == 1
    with pytest.raises(ConnectionError, match="is closed") as caught:
        consumer.recv(10)
    assert isinstance(caught.value, forebay.RingClosed)


def test_the_death_of_a_producer(ring):
    process = ring.run("""
import numpy as np
p = forebay.Producer(NAME, directory=DIRECTORY, slots=4, slot_bytes=4096)
p.send({"x": np.zeros(1)})
print("sent")
sys.stdin.read()
""")
    assert process.stdout.readline() == "sent\n"
    consumer = ring.consumer(reconnect=False)
    process.kill()
    process.communicate()
    assert consumer.recv(10).sequence == 1
    with pytest.raises(ConnectionError, match="died") as caught:
        consumer.recv(10)
    assert isinstance(caught.value, forebay.PeerDied)
    ring.producer(fresh=True).discard()


def test_the_death_of_a_consumer_brings_its_message_back(ring):
    producer = ring.producer()
    producer.send({"x": np.zeros(1)})
    process = ring.run("""
c = forebay.Consumer(NAME, directory=DIRECTORY)
m = c.recv(10)
print("held")
sys.stdin.read()
""")
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    assert ring.consumer().recv(10).attempts == 1


def test_quota_says_what_is_held(ring):
    producer = ring.producer()
    consumer = ring.consumer(quota=2)
    for _ in range(3):
        producer.send({"x": np.zeros(1)})
    kept = [consumer.recv(10), consumer.recv(10)]
    with pytest.raises(TimeoutError, match=r"\.copy\(\)") as caught:
        consumer.recv(0.05)
    assert isinstance(caught.value, forebay.QuotaExceeded)
    assert caught.value.quota == 2
    assert [lease.sequence for lease in caught.value.held] == [1, 2]
    assert all(lease.age_s >= 0 and lease.slot_bytes == 1 << 16 for lease in caught.value.held)
    del kept[0], caught
    gc.collect()
    assert consumer.recv(10).sequence == 3


def test_a_drop_in_another_thread_ends_a_wait_at_quota(ring):
    producer = ring.producer()
    consumer = ring.consumer(quota=1)
    for _ in range(2):
        producer.send({"x": np.zeros(1)})
    kept = [consumer.recv(10)]
    gate = threading.Event()
    thread = threading.Thread(target=lambda: (gate.wait(), kept.clear()))
    thread.start()
    gate.set()
    assert consumer.recv(20).sequence == 2
    thread.join()


@pytest.mark.parametrize("of_a_set", [False, True])
def test_threads_that_give_way_to_each_other_at_quota_are_told_of_it(ring, of_a_set):
    producer = ring.producer()
    receiver = ring.consumer(quota=1)
    for _ in range(3):
        producer.send({"x": np.zeros(1)})
    kept = [receiver.recv(10)]
    if of_a_set:
        receiver = forebay.ConsumerSet([receiver])
    told = []

    def wait():
        try:
            receiver.recv()
        except forebay.QuotaExceeded as e:
            told.append(e.quota)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # Whatever still waits is let go.
    kept.clear()
    for thread in threads:
        thread.join()
    assert told == [1, 1]
    receiver.close()


def test_a_missing_ring_says_where_it_looked(ring):
    with pytest.raises(TimeoutError, match="looked for") as caught:
        ring.consumer(timeout_s=0.05)
    assert isinstance(caught.value, forebay.RingNotFound)
    assert isinstance(caught.value, ConnectionError)
    assert str(ring.directory) in caught.value.path


def test_attaching_waits_for_the_ring(ring):
    process = ring.run("""
c = forebay.Consumer(NAME, directory=DIRECTORY, timeout_s=30)
print(c.recv(30).sequence)
""")
    producer = ring.producer()
    producer.send({"x": np.zeros(1)})
    assert finish(process) == "1\n"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"ids": ("int32", (4, 8))}, "int32"),
        ({"ids": ("int64", (4,))}, "ids"),
        ({"other": ("int64", (4, 8))}, "other"),
        ({"ids": ("int64", (4, 8)), "more": ("bool", ())}, "more"),
    ],
)
def test_another_schema_is_refused_with_a_diff(ring, fields, word):
    ring.producer(schema=forebay.Schema("tokens", "1.0", {"ids": ("int64", (4, 8))}))
    with pytest.raises(ValueError, match="another schema") as caught:
        ring.consumer(schema=forebay.Schema("tokens", "1.0", fields))
    assert isinstance(caught.value, forebay.SchemaMismatch)
    assert word in caught.value.diff


def test_schemas(ring):
    schema = forebay.Schema("tokens", "1.2", {"ids": (np.int64, (4, None)), "mask": ("bool", 4)})
    assert (schema.name, schema.version) == ("tokens", "1.2")
    assert [(f.name, f.dtype, f.max_dims) for f in schema.fields] == [
        ("ids", "int64", (4, None)),
        ("mask", "bool", (4,)),
    ]
    assert schema.max_bytes is None
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert schema == forebay.Schema("tokens", (1, 2), [forebay.Field("ids", int, (4, -1)), schema.fields[1]])
    assert schema.mismatch(schema) is None
    assert "2.0" in schema.mismatch(forebay.Schema("tokens", "2.0", schema.fields))
    producer = ring.producer(schema=schema)
    consumer = ring.consumer(schema=schema)
    assert consumer.schema == producer.schema == schema
    producer.send({"ids": np.zeros((2, 9), dtype="int64"), "mask": np.ones(3, dtype=bool)})
    assert consumer.recv(10).torch if consumer.stats.received else consumer.recv(10)["mask"].shape == (3,)
    for name, version, fields in [("Bad Name", "1.0", {"x": ("int8", 1)}), ("x", "1.0", {}), ("x", "one", {})]:
        with pytest.raises(ValueError, match="schema"):
            forebay.Schema(name, version, fields)


def test_a_consumer_pickles_as_name_and_options(ring):
    producer = ring.producer()
    consumer = ring.consumer(ack="manual", label="me", quota=2)
    for other in (pickle.loads(pickle.dumps(consumer)), copy.copy(consumer)):
        assert other.ring == ring.name
        assert other.index != consumer.index
        producer.send({"x": np.zeros(1)})
        while (message := other.try_recv()) is None:
            pass
        message.ack()
        other.close()


def test_the_descriptor_is_readable_when_there_is_something(ring):
    producer, consumer = ring.pair()
    poll = select.poll()
    poll.register(consumer.fileno(), select.POLLIN)
    while consumer.try_recv() is not None or poll.poll(0):
        assert consumer.try_recv() is None
    producer.send({"x": np.zeros(1)})
    while (message := consumer.try_recv()) is None:
        assert poll.poll(10_000)
    assert message.sequence == 1


def test_a_set_takes_all_of_its_consumers_or_none(ring):
    producer, good = ring.pair()
    closed = ring.consumer()
    closed.close()
    for others, error in (([closed], forebay.HandleClosed), ([good], ValueError), ([None], TypeError)):
        with pytest.raises(error):
            forebay.ConsumerSet([good, *others])
        producer.send({"x": np.zeros(1)})
        assert len(good.recv(10)) == 1


def test_a_set_that_is_refused_while_another_thread_closes_one_leaves_the_others(ring):
    ring.producer(max_consumers=32)
    for _ in range(60):
        *others, last = (ring.consumer() for _ in range(9))
        go = threading.Barrier(2)
        closing = threading.Thread(target=lambda go=go, last=last: (go.wait(), last.close()))
        closing.start()
        go.wait()
        try:
            forebay.ConsumerSet([*others, last]).close()
        except forebay.HandleClosed:
            assert [other.held() for other in others] == [[]] * len(others)
        closing.join()
        for consumer in others:
            consumer.close()


def test_a_thread_that_waits_in_a_set_keeps_nobody_from_it(ring):
    producer, consumer = ring.pair()
    assert forebay.ConsumerSet([]).rings == []
    fan_in = forebay.ConsumerSet([consumer])
    got = []
    thread = threading.Thread(target=lambda: got.append(fan_in.recv(30)))
    thread.start()
    for timeout_s in (0, 0.05):
        with pytest.raises(forebay.ReceiveTimeout) as caught:
            fan_in.recv(timeout_s)
        assert caught.value.waited_s >= timeout_s
    producer.send({"x": np.zeros(1)})
    thread.join(30)
    assert got[0][0] == 0
    fan_in.close()


def test_a_set_receives_from_all(ring):
    producers, consumers = [], []
    for n in range(3):
        producers.append(forebay.Producer(f"{ring.name}-{n}", directory=ring.directory, slots=8, slot_bytes=4096))
        consumers.append(forebay.Consumer(f"{ring.name}-{n}", directory=ring.directory))
    with forebay.ConsumerSet(consumers) as fan_in:
        assert len(fan_in) == 3
        with pytest.raises(forebay.HandleClosed):
            consumers[0].recv(0)
        for n, producer in enumerate(producers):
            for k in range(4):
                producer.send({"x": np.array([10 * n + k])})
        seen = [(place, int(message["x"].numpy()[0])) for place, message in (fan_in.recv(10) for _ in range(12))]
        assert [place for place, _ in seen[:3]] == [0, 1, 2]  # in turns
        assert sorted(value for _, value in seen) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
        assert fan_in.try_recv() is None
        with pytest.raises(forebay.ReceiveTimeout):
            fan_in.recv(0.01)
        for producer in producers:
            producer.close()
        assert list(fan_in) == []


@pytest.mark.parametrize("option", [{"ack": "maybe"}, {"wait": "nap"}, {"timeout_s": -1}])
def test_options_that_cannot_be(ring, option):
    ring.producer()
    with pytest.raises(ValueError, match=r"expected"):
        ring.consumer(**option)


@pytest.mark.parametrize("wait", ["spin", "adaptive", "block"])
def test_every_wait_policy_receives(ring, wait):
    producer = ring.producer(wait=wait, slots=3)  # a loop holds one message while it asks for the next
    process = ring.run(f"""
c = forebay.Consumer(NAME, directory=DIRECTORY, wait={wait!r})
print(sum(int(m["x"].numpy()[0]) for m in c))
""")
    for n in range(200):
        producer.send({"x": np.array([n])})
    producer.close()
    assert finish(process) == f"{sum(range(200))}\n"
