"""asyncio: async for, recv_async, cancelling."""

import asyncio
import gc
import os
import time

import numpy as np
import pytest

import forebay


def test_async_for_receives_everything_and_ends(ring):
    producer, consumer = ring.pair(slots=8)

    async def publish():
        for n in range(50):
            producer.send({"x": np.array([n])})
            await asyncio.sleep(0)
        producer.close()

    async def main():
        task = asyncio.create_task(publish())
        seen = []
        async for message in consumer:
            seen.append(int(message["x"].numpy()[0]))
            del message
        await task
        return seen

    assert asyncio.run(main()) == list(range(50))
    assert consumer.stats.acked == 50


def test_async_for_acks_when_the_next_is_asked_for(ring):
    producer, consumer = ring.pair()

    async def main():
        for n in range(2):
            producer.send({"x": np.array([n])})
        seen = 0
        async for message in consumer:
            assert consumer.stats.acked == seen
            seen += 1
            del message
            if seen == 2:
                break

    asyncio.run(main())
    consumer.close()
    assert ring.consumer().recv(10).attempts == 1


def test_a_wait_at_quota_says_so_and_ends_when_another_task_lets_go(ring):
    producer = ring.producer(slots=8)
    consumer = ring.consumer(quota=1)
    for n in range(4):
        producer.send({"x": np.array([n])})

    async def main():
        kept = [await consumer.recv_async(10)]
        for timeout_s in (0, 0.05):
            with pytest.raises(forebay.QuotaExceeded) as caught:
                await consumer.recv_async(timeout_s)
            assert [lease.sequence for lease in caught.value.held] == [1]
        del caught
        for wait in (lambda: consumer.recv_async(10), consumer.recv_async, lambda: anext(aiter(consumer))):
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0.005)
            assert not task.done()
            kept.clear()
            gc.collect()
            kept.append(await task)
            del task
        return kept[0].sequence

    assert asyncio.run(main()) == 4


def test_a_cancelled_wait_takes_and_holds_nothing(ring):
    producer, consumer = ring.pair(slots=8)

    async def main():
        got = []
        for n in range(100):
            task = asyncio.create_task(consumer.recv_async())
            for _ in range(n % 4):
                await asyncio.sleep(0)
            producer.send({"x": np.array([n])})
            for _ in range(n % 3):
                await asyncio.sleep(0)
            task.cancel()
            try:
                got.append(int((await task)["x"].numpy()[0]))
            except asyncio.CancelledError:
                got.append(int((await consumer.recv_async(10))["x"].numpy()[0]))
            del task
        gc.collect()
        assert consumer.held() == []
        return got

    assert asyncio.run(main()) == list(range(100))
    assert consumer.stats.acked == 100
    assert consumer.stats.nacked == 0


def test_wait_for_loses_nothing(ring):
    producer, consumer = ring.pair()

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(consumer.recv_async(), 0.01)
        with pytest.raises(forebay.ReceiveTimeout) as caught:
            await consumer.recv_async(0.01)
        assert caught.value.ring == ring.name
        producer.send({"x": np.zeros(1)})
        return (await asyncio.wait_for(consumer.recv_async(), 10)).sequence

    assert asyncio.run(main()) == 1


def test_several_tasks_wait_for_one_consumer(ring):
    producer, consumer = ring.pair(slots=8)

    async def main():
        tasks = [asyncio.create_task(consumer.recv_async(30)) for _ in range(5)]
        await asyncio.sleep(0)
        for n in range(5):
            producer.send({"x": np.array([n])})
        return sorted([int(message["x"].numpy()[0]) for message in await asyncio.gather(*tasks)])

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_several_consumers_in_one_loop(ring):
    producer = ring.producer(kind="broadcast", slots=8)
    consumers = [ring.consumer() for _ in range(3)]
    producer.wait_for_consumers(3, 10)

    async def one(consumer):
        return [int((await consumer.recv_async(30))["x"].numpy()[0]) for _ in range(10)]

    async def main():
        tasks = [asyncio.create_task(one(consumer)) for consumer in consumers]
        for n in range(10):
            while True:
                try:
                    producer.send({"x": np.array([n])}, timeout_s=0)
                    break
                except forebay.RingFull:
                    await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [list(range(10))] * 3


def test_closing_ends_an_asynchronous_wait(ring):
    _producer, consumer = ring.pair()

    async def main():
        task = asyncio.create_task(consumer.recv_async())
        while not consumer._waiters._futures:
            await asyncio.sleep(0)
        consumer.close()
        with pytest.raises(forebay.HandleClosed):
            await task

    asyncio.run(main())


def test_the_end_of_the_ring_wakes_an_asynchronous_wait(ring):
    producer, consumer = ring.pair()

    async def main():
        task = asyncio.create_task(consumer.recv_async(30))
        while not consumer._waiters._futures:
            await asyncio.sleep(0)
        producer.close()
        with pytest.raises(forebay.RingClosed):
            await task

    asyncio.run(main())


def registered(loop):
    """The descriptors that a loop watches, beside its own."""
    return {fd for fd in loop._selector.get_map() if fd != loop._ssock.fileno()}


def test_the_reader_stays_registered_between_waits(ring):
    producer, consumer = ring.pair(slots=8)

    async def main():
        loop = asyncio.get_running_loop()
        calls = []
        add, remove = loop.add_reader, loop.remove_reader
        loop.add_reader = lambda *args: (calls.append("add"), add(*args))
        loop.remove_reader = lambda *args: (calls.append("remove"), remove(*args))
        for n in range(20):
            task = asyncio.create_task(consumer.recv_async(10))
            await asyncio.sleep(0)
            producer.send({"x": np.array([n])})
            assert int((await task)["x"].numpy()[0]) == n
            del task
        assert calls.count("add") <= 3, calls
        del loop.add_reader, loop.remove_reader

    asyncio.run(main())


def test_nobody_waiting_costs_nothing(ring):
    producer, consumer = ring.pair(slots=8)

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(consumer.recv_async(10))
        await asyncio.sleep(0)
        producer.send({"x": np.array([1])})
        await task
        del task
        # Messages come and nobody waits: the loop must not be called for each, nor turn without end.
        for _ in range(4):
            producer.send({"x": np.array([1])})
        deadline = loop.time() + 30
        while registered(loop):
            assert loop.time() < deadline
            await asyncio.sleep(0.02)
        for _ in range(4):
            await consumer.recv_async(10)

    asyncio.run(main())


def test_a_consumer_moves_to_another_loop(ring):
    producer, consumer = ring.pair()
    for n in range(3):

        async def main(n=n):
            task = asyncio.create_task(consumer.recv_async(10))
            await asyncio.sleep(0)
            producer.send({"x": np.array([n])})
            return int((await task)["x"].numpy()[0])

        assert asyncio.run(main()) == n


def test_a_consumer_moves_between_living_loops(ring):
    producer, consumer = ring.pair()
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def one(n):
        task = asyncio.create_task(consumer.recv_async(10))
        await asyncio.sleep(0)
        producer.send({"x": np.array([n])})
        return int((await task)["x"].numpy()[0])

    for n in range(6):
        assert loops[n % 2].run_until_complete(one(n)) == n
        assert not registered(loops[1 - n % 2])
    consumer.close()
    assert not [fd for loop in loops for fd in registered(loop)]
    for loop in loops:
        loop.close()


def test_two_loops_cannot_wait_at_a_time(ring):
    _producer, consumer = ring.pair()

    def other():
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(consumer.recv_async(10))

    async def main():
        task = asyncio.create_task(consumer.recv_async(10))
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, other)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["collected", "closed", "closed elsewhere"])
def test_the_number_of_a_gone_consumers_descriptor_can_be_watched_again(ring, way):
    producer, consumer = ring.pair()

    async def main(consumer):
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(consumer.recv_async(10))
        await asyncio.sleep(0)
        producer.send({"x": np.array([1])})
        await task
        del task
        (number,) = registered(loop)
        if way == "closed":
            consumer.close()
        elif way == "closed elsewhere":
            await loop.run_in_executor(None, consumer.close)
        ring._made.remove(consumer)
        return number

    async def watch(number):
        loop = asyncio.get_running_loop()
        gc.collect()
        deadline = loop.time() + 30
        while number in registered(loop):
            assert loop.time() < deadline
            await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        reader, writer = os.pipe()
        os.dup2(reader, number)
        called = loop.create_future()
        loop.add_reader(number, called.set_result, None)
        os.write(writer, b"x")
        await asyncio.wait_for(called, 30)
        loop.remove_reader(number)
        for fd in (reader, writer, number):
            os.close(fd)

    with asyncio.Runner() as runner:
        number = runner.run(main(consumer))
        del consumer
        runner.run(watch(number))


def test_closing_from_another_thread_ends_an_asynchronous_wait(ring):
    _producer, consumer = ring.pair()

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(consumer.recv_async())
        while not consumer._waiters._futures:
            await asyncio.sleep(0)
        await loop.run_in_executor(None, consumer.close)
        with pytest.raises(forebay.HandleClosed):
            await asyncio.wait_for(task, 30)
        assert not registered(loop)

    asyncio.run(main())


def test_a_forked_child_leaves_the_parents_loop_alone(ring):
    producer, consumer = ring.pair()

    async def main():
        task = asyncio.create_task(consumer.recv_async(30))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            consumer._waiters.close()
            consumer.close()
            os._exit(0)
        assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
        producer.send({"x": np.array([5])})
        return int((await task)["x"].numpy()[0])

    assert asyncio.run(main()) == 5


def test_no_descriptor_is_left_of_many_consumers(ring):
    producer, first = ring.pair()
    first.close()

    async def one(consumer, n):
        task = asyncio.create_task(consumer.recv_async(10))
        await asyncio.sleep(0)
        producer.send({"x": np.array([n])})
        assert int((await task)["x"].numpy()[0]) == n

    def open_files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    # The first ones leave what stays for good; the producer's end of a consumer that left follows it a moment later.
    least, deadline = None, time.monotonic() + 30
    for n in range(12):
        consumer = forebay.Consumer(ring.name, directory=ring.directory)
        asyncio.run(one(consumer, n))
        if n % 2:
            consumer.close()
        del consumer
        if n == 2:
            least = open_files()
    while (left := open_files()) > least:
        assert time.monotonic() < deadline, (least, left)
        time.sleep(0.005)
