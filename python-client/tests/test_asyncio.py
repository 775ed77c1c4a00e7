"""asyncio: async for, recv_async, cancelling."""

import asyncio
import gc

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
