"""When a message counts as dealt with, and when it comes back."""

import gc

import numpy as np
import pytest

from conftest import finish


def send(producer, count=1):
    for n in range(count):
        producer.send({"x": np.full(4, n)})


def values(messages):
    return [int(message["x"].numpy()[0]) for message in messages]


def test_recv_acks_when_the_last_view_is_gone(ring):
    producer, consumer = ring.pair()
    send(producer)
    message = consumer.recv(10)
    view = message["x"].numpy()
    del message
    gc.collect()
    assert consumer.stats.acked == 0
    del view
    assert consumer.stats.acked == 1
    producer.drain(10)


def test_iteration_acks_when_the_next_is_asked_for(ring):
    producer, consumer = ring.pair()
    send(producer, 3)
    producer.close()
    seen = []
    for message in consumer:
        seen.append(int(message["x"].numpy()[0]))
        assert consumer.stats.acked == len(seen) - 1
        del message
        gc.collect()
        assert consumer.stats.acked == len(seen) - 1  # dropping it is not asking for the next
    assert seen == [0, 1, 2]
    assert consumer.stats.acked == 3
    assert consumer.held() == []


def test_iteration_acks_and_the_tensors_live_on(ring):
    producer, consumer = ring.pair()
    send(producer, 2)
    kept = []
    for message in consumer:
        kept.append(message["x"].numpy())
        del message
        if len(kept) == 2:
            break
    assert consumer.stats.acked == 1
    assert len(consumer.held()) == 2


def test_leaving_the_loop_and_the_with_block_gives_the_last_one_back(ring):
    producer, consumer = ring.pair()
    send(producer, 2)
    with consumer:
        for message in consumer:
            if values([message]) == [1]:
                del message
                break
    assert consumer.closed
    again = ring.consumer().recv(10)
    assert (values([again]), again.attempts) == ([1], 1)


def test_an_exception_in_the_loop_gives_the_message_back(ring):
    producer, consumer = ring.pair()
    send(producer)

    def fail():
        with consumer:
            for _ in consumer:
                1 / 0  # noqa: B018

    # The message goes back once nothing holds it: neither the frame, nor a traceback that leads to it.
    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    del caught
    gc.collect()
    assert ring.consumer().recv(10).attempts == 1


def test_the_next_loop_gives_the_last_message_of_the_one_before_back(ring):
    producer, consumer = ring.pair()
    send(producer)
    for message in consumer:
        del message
        break
    for message in consumer:
        assert message.attempts == 1
        break


def test_with_message_acks_on_a_clean_exit_and_nacks_on_an_exception(ring):
    producer, consumer = ring.pair()
    send(producer)
    with pytest.raises(ZeroDivisionError), consumer.recv(10):
        1 / 0  # noqa: B018
    gc.collect()
    with consumer.recv(10) as message:
        assert message.attempts == 1
    assert consumer.stats.acked == 1
    assert not message.nack()
    assert message.ack()
    del message
    producer.drain(10)


def test_manual_brings_back_what_is_dropped(ring):
    producer = ring.producer()
    consumer = ring.consumer(ack="manual")
    send(producer)
    assert consumer.recv(10).attempts == 0
    message = consumer.recv(10)
    assert message.attempts == 1
    assert message.ack()
    del message
    producer.drain(10)


def test_iteration_with_manual_ack_acks_nothing(ring):
    producer = ring.producer(slots=8)
    consumer = ring.consumer(ack="manual")
    send(producer, 2)
    seen = 0
    for message in consumer:
        seen += 1  # noqa: SIM113 - the loop is left by it
        if message.attempts == 1:
            message.ack()
        del message
        if seen == 4:
            break
    assert consumer.stats.nacked == 2


def test_close_gives_back_what_is_held(ring):
    producer, consumer = ring.pair()
    send(producer)
    message = consumer.recv(10)
    consumer.close()
    del message
    gc.collect()
    assert ring.consumer().recv(10).attempts == 1


def test_dropping_the_consumer_gives_iterations_message_back(ring):
    producer = ring.producer()
    send(producer)
    consumer = ring.consumer()
    ring._made.remove(consumer)
    for message in consumer:
        del message
        break
    del consumer
    gc.collect()
    assert ring.consumer().recv(10).attempts == 1


def test_interpreter_exit_gives_back(ring):
    producer = ring.producer()
    script = """
consumer = forebay.Consumer(NAME, directory=DIRECTORY)
kept = consumer.recv(10)
it = iter(forebay.Consumer(NAME, directory=DIRECTORY))
last = next(it)
print(kept.attempts, last.attempts)
"""
    send(producer, 2)
    assert finish(ring.run(script)) == "0 0\n"
    consumer = ring.consumer()
    got = [consumer.recv(10), consumer.recv(10)]
    assert sorted(values(got)) == [0, 1]
    assert [message.attempts for message in got] == [1, 1]


def test_a_message_that_is_nacked_too_often_is_a_dead_letter(ring):
    producer = ring.producer(max_attempts=2)
    consumer = ring.consumer()
    producer.send({"x": np.arange(3, dtype="float32"), "y": np.array(2.5)}, correlation_id=77, user=b"line 9")
    for _ in range(2):
        consumer.recv(10).nack()
    assert consumer.try_recv() is None
    (letter,) = producer.take_dead_letters()
    assert (letter.sequence, letter.correlation_id, letter.attempts, letter.user) == (1, 77, 2, b"line 9")
    assert letter.tensors["x"].numpy().tolist() == [0, 1, 2]
    assert float(letter.tensors["y"].numpy()) == 2.5
    assert producer.take_dead_letters() == []
    assert producer.stats.dead_letters == 1


def test_every_broadcast_consumer_sees_every_message(ring):
    producer = ring.producer(kind="broadcast", slots=8)
    consumers = [ring.consumer() for _ in range(3)]
    producer.wait_for_consumers(3, 10)
    send(producer, 3)
    for consumer in consumers:
        assert consumer.kind == "broadcast"
        assert [int(consumer.recv(10)["x"].numpy()[0]) for _ in range(3)] == [0, 1, 2]
    producer.drain(10)
