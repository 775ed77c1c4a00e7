"""Hashed features are those of scikit-learn; JSON lines become the tensors that their schema says."""

import collections
import json
import mmap
import pathlib
import random
import threading

import numpy as np
import pytest
import sklearn.feature_extraction

from forebay_ingest import FeatureHasher, IngestError, SparseRows, TableEncoder

random.seed(11)
NAMES = [
    "",
    "a",
    "dog",
    "\0",
    "a\0b",
    "é",
    "e\u0301",
    "日本語",
    "👩‍👩‍👧‍👦",
    "x" * 1000,
    "a=b",
    *(f"name{i}" for i in range(300)),
]
# Sums of these are exact in any order: the one that scikit-learn adds in is not stated.
VALUES = [0, 0.0, -0.0, 1, 2.5, -3, 0.25, True, False, "label", "", "é", np.float32(1.5), np.int64(7)]


def samples(kind: str, rows: int = 300) -> list:
    def pairs() -> list:
        return [(random.choice(NAMES), random.choice(VALUES)) for _ in range(random.choice([0, 1, 2, 20, 90]))]

    if kind == "string":
        return [[random.choice(NAMES) for _ in range(random.choice([0, 1, 3, 30, 200]))] for _ in range(rows)]
    return [dict(pairs()) if kind == "dict" else pairs() for _ in range(rows)]


def same(ours, theirs) -> None:
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.indptr, theirs.indptr)
    assert np.array_equal(ours.indices, theirs.indices)
    assert ours.indices.dtype == theirs.indices.dtype
    assert ours.indptr.dtype == theirs.indptr.dtype
    assert ours.data.dtype == theirs.data.dtype
    assert np.array_equal(ours.data, theirs.data)


@pytest.mark.parametrize("kind", ["dict", "pair", "string"])
@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize(
    ("width", "dtype"), [(1, "float64"), (10, "float64"), (2**20, "float32"), (2**31 - 1, "float64")]
)
def test_hashed_features_are_those_of_scikit_learn(kind: str, sign: bool, width: int, dtype: str) -> None:
    ours = FeatureHasher(width, input_type=kind, alternate_sign=sign, dtype=dtype)
    theirs = sklearn.feature_extraction.FeatureHasher(
        width, input_type=kind, alternate_sign=sign, dtype=np.dtype(dtype)
    )
    rows = samples(kind)
    same(ours.transform(rows), theirs.transform(rows))


def test_fractions_and_numbers_of_any_size_are_taken_as_they_are() -> None:
    values = [1e300, 5e-324, 2**60, 0.1, -1e-9, 2**1000]
    rows = [{name: random.choice(values) for name in NAMES} for _ in range(10)]
    width = 2**31 - 1
    same(FeatureHasher(width).transform(rows), sklearn.feature_extraction.FeatureHasher(width).transform(rows))
    rows = [[(random.choice(NAMES), random.random()) for _ in range(100)] for _ in range(100)]
    ours = FeatureHasher(50, input_type="pair").transform(rows)
    theirs = sklearn.feature_extraction.FeatureHasher(50, input_type="pair").transform(rows)
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=1e-12, atol=1e-14)


def test_samples_may_be_anything_that_can_be_iterated() -> None:
    class Text(str):
        __slots__ = ()

    expected = FeatureHasher(64, input_type="string").transform([["a", "b", "é"], []])
    for rows in (
        (iter(names) for names in (["a", "b", "é"], ())),
        [(b"a", "b", Text("é")), set()],
        [["a", Text("b"), "é".encode()], ()],
    ):
        same(FeatureHasher(64, input_type="string").transform(rows), expected)
    expected = FeatureHasher(64).transform([{"a": 2, "b": "x"}])
    for rows in ([collections.OrderedDict(a=2, b="x")], [{Text("a"): np.float64(2), b"b": Text("x")}]):
        same(FeatureHasher(64).transform(rows), expected)
    same(FeatureHasher(64, input_type="pair").transform([[["a", 2], ("b", "x")]]), expected)
    same(FeatureHasher(64, input_type="pair").transform([{"a": 2, "b": "x"}.items()]), expected)
    assert FeatureHasher(64).transform([]).shape == (0, 64)
    assert FeatureHasher(64).fit([{}]).fit_transform([{}]).shape == (1, 64)


@pytest.mark.parametrize(
    ("kind", "bad", "part"),
    [
        ("dict", {"a": None}, "must be real number"),
        ("dict", {1: 2}, "feature name is a int"),
        ("dict", {"a": float("nan")}, "a value is NaN"),
        ("dict", {"a": float("inf")}, "a value is inf"),
        ("dict", {"a": np.float64("-inf")}, "a value is -inf"),
        ("dict", {"a": 10**400}, "too large"),
        ("dict", {"\ud800": 1}, "surrogates"),
        ("pair", [("a",)], "another length"),
        ("pair", [("a", 1, 2)], "another length"),
        ("pair", [7], "not iterable"),
        ("string", "abc", "one string"),
        ("string", [None], "feature name is a NoneType"),
        ("string", 7, "not iterable"),
    ],
)
def test_a_bad_sample_is_an_error_with_its_index(kind: str, bad: object, part: str) -> None:
    good = {"dict": {"a": 1}, "pair": [("a", 1)], "string": ["a"]}[kind]
    with pytest.raises(IngestError, match=part) as caught:
        FeatureHasher(8, input_type=kind).transform([good, good, bad])
    assert caught.value.index == 2
    assert str(caught.value).startswith("sample 2: ")


def test_a_value_that_changes_its_dict_does_no_harm() -> None:
    class Evil:
        def __init__(self, row: dict) -> None:
            self.row = row

        def __float__(self) -> float:
            self.row.clear()
            return 1.0

    row: dict = {"a": 1.0}
    row |= {"b": Evil(row), "c": 2.0}
    with pytest.raises(RuntimeError, match="changed size"):
        FeatureHasher(8).transform([row])


def test_hashers_that_make_no_sense_are_refused() -> None:
    for width in (0, -1, 2**31):
        with pytest.raises((ValueError, OverflowError)):
            FeatureHasher(width)
    with pytest.raises(ValueError, match='input_type is "list"'):
        FeatureHasher(8, input_type="list")
    with pytest.raises(ValueError, match="dtype is int64"):
        FeatureHasher(8, dtype="int64")


SCHEMA = {
    "tensors": [
        {
            "name": "person",
            "columns": [
                {"type": "numeric", "path": "age", "missing": {"mean": 40}},
                {"type": "one_hot", "path": "at.country", "vocabulary": ["de", "fr"], "unknown": "column"},
            ],
        },
        {"name": "id", "dtype": "i64", "columns": [{"type": "numeric", "path": "id"}]},
        {
            "name": "clicks",
            "layout": "sparse",
            "indices": "i32",
            "columns": [{"type": "hashed", "path": "clicks", "features": 1000, "missing": "zeros"}],
        },
    ]
}


def people(count: int) -> list[dict]:
    return [
        {
            "id": 2**53 + 1 + i,
            "age": None if i % 7 == 0 else i % 90,
            "at": {"country": random.choice(["de", "fr", "gb"]), "more": [[{}]]},
            "clicks": {f"item{random.randrange(500)}é": random.randrange(-5, 5) for _ in range(random.randrange(9))},
        }
        for i in range(count)
    ]


def test_lines_become_the_tensors_that_the_schema_says() -> None:
    rows = people(5000)
    text = "\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)).encode()
    encoder = TableEncoder.from_config(SCHEMA)
    made = encoder.encode(text).arrays()
    assert made["id"].dtype == np.int64
    assert made["id"][:, 0].tolist() == [row["id"] for row in rows]
    assert made["person"].dtype == np.float32
    assert made["person"][:, 0].tolist() == [40.0 if row["age"] is None else row["age"] for row in rows]
    for at, country in enumerate(["de", "fr", "gb"]):
        assert made["person"][:, 1 + at].tolist() == [float(row["at"]["country"] == country) for row in rows]
    clicks = made["clicks"]
    assert isinstance(clicks, SparseRows)
    hasher = sklearn.feature_extraction.FeatureHasher(1000, dtype=np.float32)
    same(clicks.scipy(), hasher.transform([row["clicks"] for row in rows]))

    lines = text.split(b"\n")
    for given in (lines, [line.decode() for line in lines], iter(lines), bytearray(text), memoryview(text)):
        again = encoder.encode(given, threads=2).arrays()
        assert all(np.array_equal(again[name], made[name]) for name in ("id", "person"))
        assert all(np.array_equal(a, b) for a, b in zip(again["clicks"], clicks, strict=True))


def test_a_file_is_encoded_from_its_map(tmp_path: pathlib.Path) -> None:
    (tmp_path / "schema.toml").write_text('[[tensors]]\nname = "x"\ncolumns = [{ type = "numeric", path = "a" }]\n')
    (tmp_path / "data.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}\n')
    encoder = TableEncoder.from_file(tmp_path / "schema.toml")
    assert encoder.tensors == [("x", "float32", None, 1)]
    with (tmp_path / "data.jsonl").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert encoder.encode(data).arrays()["x"].tolist() == [[1], [2]]
    with pytest.raises(FileNotFoundError, match=r"no\.toml"):
        TableEncoder.from_file(tmp_path / "no.toml")
    (tmp_path / "schema.toml").write_text("tensors = 3")
    with pytest.raises(ValueError, match=r"schema\.toml is not a table schema"):
        TableEncoder.from_file(tmp_path / "schema.toml")
    with pytest.raises(ValueError, match="features is 0"):
        TableEncoder.from_config(
            {"tensors": [{"name": "x", "columns": [{"type": "hashed", "path": "a", "features": 0}]}]}
        )


def test_bad_lines_raise_or_are_left_out_and_listed() -> None:
    encoder = TableEncoder.from_config(
        {"tensors": [{"name": "x", "columns": [{"type": "numeric", "path": "a"}]}]}, max_line_bytes=100
    )
    lines = [b'{"a": 1}', b'{"a": NaN}', b'{"a": "\xff"}', b"[" * 99, b"7" * 101, b'{"a": 2}', b'{"a": 1e39}', b""]
    with pytest.raises(IngestError, match="item 1: not JSON") as caught:
        encoder.encode(lines)
    assert caught.value.index == 1
    batch = encoder.encode(lines, on_error="skip")
    assert len(batch) == 2
    assert batch.items.tolist() == [0, 5]
    assert [index for index, _ in batch.errors] == [1, 2, 3, 4, 6, 7]
    assert batch.arrays()["x"].tolist() == [[1], [2]]
    with pytest.raises(TypeError, match="one str"):
        encoder.encode('{"a": 1}')
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        encoder.encode(lines, on_error="ignore")
    with pytest.raises(ValueError, match="at most 7 are allowed"):
        TableEncoder.from_config(SCHEMA, max_batch_bytes=7).encode([b"{}"])


def test_an_item_that_is_no_line_is_a_bad_line_and_no_more() -> None:
    encoder = TableEncoder.from_config({"tensors": [{"name": "x", "columns": [{"type": "numeric", "path": "a"}]}]})
    lines = [b'{"a": 1}', 7, '{"a": 2}', "\ud800", None, b"no", b'{"a": 3}']
    with pytest.raises(IngestError, match="^item 1: it is int, expected bytes or str$") as caught:
        encoder.encode(lines)
    assert caught.value.index == 1
    with pytest.raises(IngestError, match="^item 1: it is no Unicode text: .*surrogates") as caught:
        encoder.encode(lines[2:])
    assert caught.value.index == 1
    batch = encoder.encode(lines, on_error="skip")
    assert batch.items.tolist() == [0, 2, 6]
    assert batch.arrays()["x"].tolist() == [[1], [2], [3]]
    assert [index for index, _ in batch.errors] == [1, 3, 4, 5]
    assert batch.errors[2][1] == "it is NoneType, expected bytes or str"
    assert batch.errors[3][1].startswith("not JSON")


def test_tensors_are_written_where_they_are_wanted() -> None:
    batch = TableEncoder.from_config(SCHEMA).encode([json.dumps(row) for row in people(10)])
    fields = batch.fields
    assert list(fields) == ["person", "id", "clicks.indptr", "clicks.indices", "clicks.values"]
    assert fields["person"] == ("float32", (10, 4))
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in fields.items()}
    batch.write_into(arrays)
    made = batch.arrays()
    assert np.array_equal(arrays["id"], made["id"])
    assert np.array_equal(arrays["clicks.values"], made["clicks"].values)
    with pytest.raises(KeyError, match=r"clicks\.indptr"):
        batch.write_into({name: array for name, array in arrays.items() if name != "clicks.indptr"})
    with pytest.raises(ValueError, match="takes 40 elements"):
        batch.write_into(arrays | {"person": np.empty((9, 4), np.float32)})
    with pytest.raises(TypeError, match="expected int64"):
        batch.write_into(arrays | {"id": np.empty((10, 1), np.float64)})


def test_threads_share_one_encoder() -> None:
    encoder = TableEncoder.from_config(SCHEMA)
    text = "\n".join(map(json.dumps, people(2000))).encode()
    expected = encoder.encode(text).arrays()["person"]
    right: list[bool] = []
    threads = [
        threading.Thread(target=lambda: right.append(np.array_equal(encoder.encode(text).arrays()["person"], expected)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_lines_that_another_thread_writes_to_are_parsed_as_they_were_checked() -> None:
    column = {"type": "one_hot", "path": "c", "vocabulary": ["y"], "unknown": "error"}
    encoder = TableEncoder.from_config({"tensors": [{"name": "x", "columns": [column]}]})
    # The parser has a long way to the letters that change.
    line = b'{"a": "' + b"x" * 500_000 + b'", "c": "' + b"x" * 20 + b'"}\n'
    count = 16
    text = bytearray(line * count)
    letters = np.frombuffer(text, np.uint8).reshape(count, len(line))[:, -10]
    [(_, unknown)] = encoder.encode(line, on_error="skip").errors
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            # No UTF-8, and some again.
            letters[:] = 0xFF
            letters[:] = ord("x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            for given in (text, memoryview(text)):
                errors = encoder.encode(given, on_error="skip", threads=1).errors
                assert len(errors) == count
                assert all(reason == unknown or reason.startswith("not UTF-8: byte 0xff") for _, reason in errors)
    finally:
        stop.set()
        writer.join()
