"""Both ends of a service in one process."""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import forebay
from faulty import run

_COUNT = itertools.count()


@pytest.fixture
def ends(tmp_path):
    """Makes both ends of a service; closes them."""
    made = []

    def make(*, ranks=1, server=None, **options):
        name = f"py-{os.getpid()}-s{next(_COUNT)}"
        options.setdefault("slots", 4)
        options.setdefault("slot_bytes", 1 << 16)
        client = forebay.ServiceClient(name, directory=tmp_path, ranks=ranks, **options)
        made.append(client)
        servers = []
        for rank in range(ranks):
            arguments = {"answer_slot_bytes": 1 << 16, "answer_slots": 4, **(server or {})}
            servers.append(forebay.ServiceServer(name, directory=tmp_path, rank=rank, **arguments))
            made.append(servers[-1])
        client.accept(timeout_s=10)
        return (client, *servers)

    yield make
    for end in reversed(made):
        end.close()
    left = [name for name in os.listdir(tmp_path) if not name.endswith(".tmp")]
    assert not left, "sockets and lock files are gone"


def test_a_request_is_answered_with_everything_it_said(ends):
    client, server = ends()
    server.ready("torch 2")
    assert client.recv(10).readiness == (os.getpid(), 1, "torch 2")
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    deadline = time.monotonic() + 100
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    number = client.send({"x": x, "scale": np.float32(2)}, ids=[7, 9], deadline=deadline, trace=trace)
    assert client.outstanding == 1

    batch = server.recv(10)
    assert (len(batch), batch.request, batch.ids, batch.keys()) == (2, number, [7, 9], ["x", "scale"])
    assert batch.trace == trace
    assert batch.deadline == pytest.approx(deadline)
    assert [(item.id, item.deadline) for item in batch.items] == [(7, batch.deadline), (9, batch.deadline)]
    assert "x" in batch
    assert "forebay.items" not in batch.keys()  # noqa: SIM118 - a batch does not iterate
    assert server.outstanding == 1
    arrays = batch.numpy()
    server.answer(batch, {"y": arrays["x"] * arrays["scale"]}, started_ns=5, ended_ns=6)
    del arrays, batch

    answer = client.recv(10)
    assert (answer.kind, answer.request, answer.started_ns, answer.ended_ns) == ("result", number, 5, 6)
    assert answer.keys() == ["y"]
    np.testing.assert_array_equal(answer["y"].numpy(), x * 2)
    np.testing.assert_array_equal(answer.numpy()["y"], x * 2)
    assert [(i.id, i.request, i.status, i.last, i.error) for i in answer.items] == [
        (7, number, "ok", True, None),
        (9, number, "ok", True, None),
    ]
    assert client.outstanding == server.outstanding == 0
    assert client.try_recv() is None
    assert client.is_alive


def test_single_items_fail(ends):
    client, server = ends()
    client.send({"x": np.zeros(3)})
    batch = server.recv(10)
    batch.fail(1, ValueError("out of range"))
    batch.fail(2, "just so")
    with pytest.raises(IndexError):
        batch.fail(3, ValueError())
    with pytest.raises(TypeError, match="int"):
        batch.fail(0, 5)
    server.answer(batch, {"y": batch["x"]})
    items = client.recv(10).items
    assert [i.status for i in items] == ["ok", "error", "error"]
    assert [i.error for i in items] == [None, "ValueError: out of range", "Error: just so"]


def test_rows_of_a_batch_are_answered_apart(ends):
    client, server = ends()
    x = np.arange(12, dtype=np.int16).reshape(4, 3)  # rows of 6 bytes
    number = client.send({"x": x, "scalar": np.int64(5)})
    batch = server.recv(10)
    middle, rest = batch.rows(1, 3), batch.rows(0, 1)
    inner = middle.rows(1, 2)
    for part, rows in ((middle, slice(1, 3)), (rest, slice(0, 1)), (inner, slice(2, 3))):
        assert len(part) == len(part.ids) == rows.stop - rows.start
        np.testing.assert_array_equal(part["x"].numpy(), x[rows])
        np.testing.assert_array_equal(part.numpy()["x"], x[rows])
        assert part["x"].tobytes() == x[rows].tobytes()
        assert part["scalar"].numpy() == 5
        assert part["x"].data_ptr - batch["x"].data_ptr == rows.start * 6, "nothing is copied"
        assert not part["x"].numpy().flags.writeable
    for start, stop in ((0, 5), (2, 2), (3, 1)):
        with pytest.raises(IndexError):
            batch.rows(start, stop)
    server.answer(middle, {"y": middle["x"]})
    server.fail(rest, RuntimeError("bad"))
    server.give_up(batch.rows(3, 4))
    del part, inner, middle, rest
    kinds = [client.recv(10) for _ in range(3)]
    assert [answer.kind for answer in kinds] == ["part"] * 3
    assert [[(i.id - batch.ids[0], i.request == number, i.status, i.error) for i in a.items] for a in kinds] == [
        [(1, True, "ok", None), (2, True, "ok", None)],
        [(0, True, "error", "RuntimeError: bad")],
        [(3, True, "cancelled", None)],
    ]
    np.testing.assert_array_equal(kinds[0]["y"].numpy(), x[1:3])
    assert client.outstanding == server.outstanding == 0


def test_rows_of_a_batch_as_torch(ends):
    torch = pytest.importorskip("torch")
    client, server = ends()
    x = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    client.send({"x": x})
    part = server.recv(10).rows(1, 3)
    assert torch.equal(part.torch()["x"], x[1:3])
    assert torch.equal(part["x"].torch(), x[1:3])


def outputs():
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    yield "contiguous", base
    yield "strided", base.t().contiguous().t()
    yield "every other", torch.arange(24, dtype=torch.float32).reshape(4, 6)[:, ::2]
    yield "gradient", base.clone().requires_grad_() * 2
    yield "leaf gradient", base.clone().requires_grad_()
    yield "bfloat16", base.to(torch.bfloat16)
    yield "float16 strided", base.half().t().contiguous().t()
    yield "bool", base > 3
    yield "one each", torch.arange(4)
    yield "no columns", torch.zeros(4, 0)
    yield "negated view", torch.view_as_complex(torch.ones(4, 3, 2)).conj()
    yield "numpy", base.numpy()
    yield "numpy strided", np.asfortranarray(base.numpy())
    yield "numpy reversed", base.numpy()[::-1]
    yield "ints", [1, 2, 3, 4]
    yield "floats", [1.5, 2, 3, 4]
    yield "nested", [[1, 2], [3, 4], [5, 6], [7, 8]]
    yield "bytes", b"abcd"


def test_an_answer_takes_what_a_model_returns(ends):
    torch = pytest.importorskip("torch")
    client, server = ends()
    for name, value in outputs():
        client.send({"x": np.zeros(4)})
        batch = server.recv(10)
        server.answer(batch, {"y": value})
        del batch
        answer = client.recv(10)
        if isinstance(value, torch.Tensor):
            found, expected = answer["y"].torch(), value.detach().resolve_conj()
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name
        elif isinstance(value, bytes):
            assert answer["y"].tobytes() == value
        else:
            np.testing.assert_array_equal(answer["y"].numpy(), np.asarray(value), err_msg=name)
            assert answer["y"].numpy().dtype == np.asarray(value).dtype, name
        del answer


def test_what_cannot_be_sent_is_refused_and_can_be_failed(ends):
    client, server = ends()
    refused = [
        ({"y": np.zeros(3)}, forebay.FieldsMismatch, "3 rows, expected 4"),
        ({"y": np.float32(1)}, forebay.FieldsMismatch, "scalar"),
        ({"y": np.zeros((4, 1 << 15))}, forebay.MessageTooLarge, "1048576 bytes.* room for 81856"),
        ({"y": np.array(["a", "b", "c", "d"])}, ValueError, '"y"'),
        ({"y": [object()] * 4}, ValueError, '"y"'),
        ({"y": [[1], [1, 2], [3], [4]]}, ValueError, "inhomogeneous"),
        ({"y": object()}, ValueError, "object"),
        ({5: np.zeros(4)}, TypeError, "name"),
    ]
    for fields, error, text in refused:
        client.send({"x": np.zeros(4)})
        batch = server.recv(10)
        with pytest.raises(error, match=text) as caught:
            server.answer(batch, fields)
        server.fail(batch, caught.value)
        answer = client.recv(10)
        assert (answer.kind, answer.failure) == ("failed", (type(caught.value).__name__, str(caught.value)))
        with pytest.raises(forebay.ServiceError, match="answered already"):
            server.answer(batch, {})
        del answer, batch, caught


def test_parts_stream_over_several_requests(ends):
    client, server = ends()
    first = client.send({"x": np.zeros(2)}, ids=[1, 2])
    second = client.send({"x": np.zeros(1)}, ids=[3])
    batches = [server.recv(10), server.recv(10)]
    server.part([(1, False), (3, True)], {"token": [11, 33]}, started_ns=1, ended_ns=2)
    server.part([(1, True), (2, True)], {}, errors={0: ValueError("no")}, cancelled=[1])
    with pytest.raises(forebay.ServiceError, match="item 3"):
        server.part([(3, True)], {})
    a, b = client.recv(10), client.recv(10)
    assert (a.kind, a.request) == ("part", 0)
    assert [(i.id, i.request, i.last) for i in a.items] == [(1, first, False), (3, second, True)]
    assert a["token"].numpy().tolist() == [11, 33]
    assert [(i.id, i.status, i.error) for i in b.items] == [(1, "error", "ValueError: no"), (2, "cancelled", None)]
    assert client.outstanding == 0
    del batches


def test_cancellation_and_deadline_are_seen(ends):
    client, server = ends()
    number = client.send({"x": np.zeros(2)}, ids=[4, 5])
    batch = server.recv(10)
    assert not batch.cancelled(0)
    assert not batch.unwanted()
    client.cancel(number, [5])
    assert [batch.cancelled(0), batch.cancelled(1)] == [False, True]
    assert server.is_cancelled(number, 5)
    assert server.cancelled() == [(number, 5)]
    assert not batch.unwanted()
    assert batch.rows(1, 2).unwanted()
    client.cancel(number, [])
    assert not batch.cancelled(0), "no items are not all items"
    client.cancel(number)
    assert batch.unwanted()
    with pytest.raises(IndexError):
        batch.cancelled(2)
    server.give_up(batch)
    assert [i.status for i in client.recv(10).items] == ["cancelled", "cancelled"]
    client.send({"x": np.zeros(1)}, deadline=time.monotonic() - 1)
    assert server.recv(10).unwanted()


def test_what_cannot_be_asked_is_refused(ends):
    client, _server = ends()
    for arrays, options, error, text in [
        ({"x": np.zeros(2), "y": np.zeros(3)}, {}, forebay.FieldsMismatch, "first dim must be 2"),
        ({"x": np.zeros(2)}, {"ids": [1, 1]}, forebay.FieldsMismatch, "given twice"),
        ({"x": np.zeros(2)}, {"ids": [1]}, forebay.FieldsMismatch, "first dim"),
        ({"x": np.zeros(1)}, {"trace": "hello"}, ValueError, "traceparent"),
        ({"x": np.zeros(1)}, {"trace": "00-" + "0" * 32 + "-" + "1" * 16 + "-00"}, ValueError, "traceparent"),
        ({"x": np.zeros(1)}, {"deadline": -1.0}, ValueError, "deadline"),
        ({"x": np.zeros(1 << 16)}, {}, forebay.MessageTooLarge, "a message of 524288 bytes does not fit"),
        ({"x": object()}, {}, ValueError, '"x"'),
    ]:
        with pytest.raises(error, match=text):
            client.send(arrays, **options)
    assert client.outstanding == 0
    for _ in range(4):
        client.send({"x": np.zeros(1)})
    with pytest.raises(forebay.RingFull):
        client.send({"x": np.zeros(1)})


def test_a_schema_binds_the_fields(ends):
    schema = forebay.Schema("texts", "1.0", {"ids": ("int64", (8, 16)), "mask": ("int8", (8, 16))})
    client, server = ends(schema=schema, slot_bytes=None)
    ids, mask = np.arange(32).reshape(2, 16), np.ones((2, 16), dtype=np.int8)
    client.send({"mask": mask, "ids": ids})  # in any order
    batch = server.recv(10)
    assert batch.keys() == ["ids", "mask"]
    np.testing.assert_array_equal(batch["ids"].numpy(), ids)
    np.testing.assert_array_equal(batch["mask"].numpy(), mask)
    with pytest.raises(forebay.FieldsMismatch):
        client.send({"ids": ids})


def test_a_drain_ends_both_ends_in_order(ends):
    client, server = ends()
    client.send({"x": np.zeros(1)})
    client.drain()
    with pytest.raises(forebay.HandleClosed):
        client.send({"x": np.zeros(1)})
    batch = server.recv(10)
    with pytest.raises(forebay.ServiceClosed) as closed:
        server.recv(10)
    assert closed.value.outstanding == 1
    server.answer(batch, {})
    server.close()
    assert client.recv(10).kind == "result"
    with pytest.raises(forebay.ServiceClosed) as closed:
        client.recv(10)
    assert (closed.value.outstanding, closed.value.service) == (0, client.service)
    with pytest.raises(forebay.HandleClosed):
        server.recv()


def test_a_server_that_leaves_is_noticed_while_waiting(ends):
    client, server = ends()
    client.send({"x": np.zeros(1)})
    threading.Timer(0.05, server.close).start()
    with pytest.raises(forebay.ServiceClosed, match="1 requests are unanswered"):
        client.recv(10)
    assert not client.is_alive


def test_a_thread_answers_while_another_waits(ends):
    client, server = ends()
    client.send({"x": np.zeros(1)})
    batch = server.recv(10)
    waiting = threading.Thread(target=lambda: server.recv(10))
    waiting.start()
    server.answer(batch, {"y": np.ones(1)})
    assert client.recv(10)["y"].numpy() == 1
    client.send({"x": np.zeros(1)})
    waiting.join(10)
    assert not waiting.is_alive()


def test_descriptors_are_readable_when_there_is_something(ends):
    client, server = ends()

    def wait(end):
        give_up = time.monotonic() + 10
        while (found := end.try_recv()) is None and time.monotonic() < give_up:
            select.select([end.fileno()], [], [], 10)
        return found

    client.send({"x": np.zeros(1)})
    batch = wait(server)
    threading.Timer(0.02, lambda: server.answer(batch, {})).start()
    assert wait(client).kind == "result"


def test_all_ranks_get_each_batch_and_rank_0_answers(ends):
    client, lead, other = ends(ranks=2)
    assert (lead.ranks, other.ranks, lead.rank, other.rank) == (2, 2, 0, 1)
    for value in range(8):
        number = client.send({"x": np.full(2, value)})
        client.cancel(number)
        for server in (other, lead):
            batch = server.recv(10)
            assert batch["x"].numpy().tolist() == [value, value]
            assert not batch.cancelled(0)
            assert not batch.unwanted()
            if server is other:
                with pytest.raises(forebay.ServiceError, match="rank 1"):
                    other.answer(batch, {})
                other.finish(batch)
            else:
                lead.answer(batch, {"y": batch["x"]})
            del batch
        assert client.recv(10)["y"].numpy().tolist() == [value, value]
    other.close()
    with pytest.raises(forebay.PeerDied, match="1 of 2 ranks"):
        client.recv(10)


def test_a_kept_answer_outlives_both_ends(ends):
    client, server = ends()
    client.send({"x": np.arange(4)})
    batch = server.recv(10)
    x = batch.numpy()["x"]
    server.answer(batch, {"y": x})
    y = client.recv(10).numpy()["y"]
    del batch
    client.close()
    server.close()
    assert x.tolist() == y.tolist() == [0, 1, 2, 3]


def test_a_client_without_a_server_says_so(tmp_path):
    with forebay.ServiceClient(f"py-{os.getpid()}-alone", directory=tmp_path) as client:
        with pytest.raises(forebay.ServiceError, match="no server yet"):
            client.try_recv()
        with pytest.raises(TimeoutError, match="no server"):
            client.accept(timeout_s=0.05)
        assert not client.is_alive
    with pytest.raises(forebay.RingNotFound):
        forebay.ServiceServer(f"py-{os.getpid()}-nobody", directory=tmp_path, timeout_s=0)
    with pytest.raises(forebay.InvalidOptions):
        forebay.ServiceClient("Not A Name", directory=tmp_path)


def test_places_that_are_not_there_are_refused_and_nothing_is_sent(ends):
    client, server = ends()
    client.send({"x": np.zeros(1)}, ids=[7])
    batch = server.recv(10)
    with pytest.raises(IndexError, match="no item 7, 1 are given"):
        server.part([(7, True)], {}, errors={7: ValueError("no")})
    with pytest.raises(IndexError, match="no item 1, 1 are given"):
        server.part([(7, True)], {}, cancelled=[1])
    assert client.try_recv() is None
    server.part([(7, True)], {}, errors={0: ValueError("no")})
    assert [(i.status, i.error) for i in client.recv(10).items] == [("error", "ValueError: no")]
    del batch


def test_slots_that_other_threads_copy_answers_into_are_waited_for(ends):
    size = 8 << 20  # more than is copied with the interpreter held
    client, server = ends(slots=40, server={"answer_slots": 1, "answer_slot_bytes": size})
    large = np.zeros((1, size), np.uint8)
    for _ in range(36):
        client.send({"x": np.zeros(1)})
    batches = [server.recv(10) for _ in range(36)]
    with ThreadPoolExecutor(4) as pool:
        answered = [
            pool.submit(server.fail, batch, "no") if n % 4 == 3 else pool.submit(server.answer, batch, {"y": large})
            for n, batch in enumerate(batches)
        ]
        kinds = [client.recv(20).kind for _ in batches]
        for end in answered:
            end.result()
    assert (kinds.count("failed"), kinds.count("result")) == (9, 27)


def test_ready_lets_others_run_while_it_waits_for_a_slot(ring):
    out = run(
        ring,
        """
client = forebay.ServiceClient(NAME + "-s", directory=DIRECTORY)
server = forebay.ServiceServer(NAME + "-s", directory=DIRECTORY, answer_slots=1)
client.accept(10)
client.send({"x": np.zeros(1)})
server.answer(server.recv(10), {"y": np.zeros(1)})
kinds = []
t = threading.Timer(0.1, lambda: kinds.append(client.recv(10).kind))
t.start()
server.ready("torch")
t.join()
print(kinds, client.recv(10).readiness[1:])
client.close()
server.close()
""",
    )
    assert out == "['result'] (1, 'torch')\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_the_texts_of_answers_are_there_in_a_forked_child(ends):
    client, server = ends()
    server.ready("torch 2")
    client.send({"x": np.zeros(1)}, ids=[1])
    client.send({"x": np.zeros(1)}, ids=[2])
    server.fail(server.recv(10), ValueError("bad"))
    batch = server.recv(10)
    batch.fail(0, "just so")
    server.answer(batch, {})
    ready, failed, result = (client.recv(10) for _ in range(3))
    pid = os.fork()
    if pid == 0:
        texts = (ready.readiness[2], failed.failure, result.items[0].error)
        os._exit(0 if texts == ("torch 2", ("ValueError", "bad"), "Error: just so") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
