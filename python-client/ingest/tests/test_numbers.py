"""Arrays are scaled as scikit-learn scales them, and searched as NumPy does it."""

import fractions
import os
import pathlib
import threading

import numpy as np
import pytest
import sklearn.preprocessing
import torch
from interrupted import after_ctrl_c
from sklearn.metrics.pairwise import cosine_similarity

import forebay_ingest
from forebay_ingest import IngestError, MinMaxScaler, StandardScaler, l2_normalize, scale, top_k

RNG = np.random.default_rng(7)


def tables(dtype: str) -> list[np.ndarray]:
    missing = RNG.normal(size=(1000, 6))
    missing[RNG.random(missing.shape) < 0.3] = np.nan
    missing[:, 2] = np.nan
    constant = np.tile([0.1, 0.0, 1e-20, 3e7], (300, 1))
    tables = [
        RNG.normal(size=(2000, 5)),
        RNG.random((3, 70)),
        RNG.random((70_000, 1)),
        missing,
        constant,
        np.ones((1, 4)),
    ]
    if dtype == "float64":
        tables += [RNG.normal(size=(200, 3)) * 1e-160]
    return [table.astype(dtype) for table in tables]


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value encountered in divide")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalers_do_what_those_of_scikit_learn_do(dtype: str) -> None:
    for x in tables(dtype):
        theirs = sklearn.preprocessing.StandardScaler().fit(x)
        ours = StandardScaler().fit(x)
        assert np.array_equal(ours.n_samples_seen_, np.broadcast_to(theirs.n_samples_seen_, x.shape[1:]))
        np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-10, atol=1e-30)
        np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-10)
        # What is fitted differs in the last digits; what is made of it does not.
        theirs.mean_, theirs.scale_ = ours.mean_, ours.scale_
        expected = theirs.transform(x)
        found = ours.transform(x)
        assert found.dtype == expected.dtype == x.dtype
        assert np.array_equal(found, expected, equal_nan=True)

        range_ = (-1.0, 3.0)
        theirs = sklearn.preprocessing.MinMaxScaler(range_).fit(x)
        ours = MinMaxScaler(range_).fit(x)
        for name in ("data_min_", "data_max_", "scale_", "min_"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name), equal_nan=True), name
        assert np.array_equal(ours.transform(x), theirs.transform(x), equal_nan=True)


def test_a_large_mean_is_as_exact_as_it_can_be() -> None:
    x = RNG.normal(size=(20_000, 3))
    x += [1e6, -1e9, 1e12]
    ours = StandardScaler().fit(x)
    for column, (mean, var) in enumerate(zip(ours.mean_, ours.var_, strict=True)):
        values = [fractions.Fraction(value) for value in x[:, column].tolist()]
        exact = sum(values) / len(values)
        assert mean == float(exact)
        assert var == pytest.approx(float(sum((value - exact) ** 2 for value in values) / len(values)), rel=1e-13)


def test_a_transform_equals_plain_arithmetic_to_the_last_bit() -> None:
    x = RNG.normal(size=(1000, 7))
    scaler = StandardScaler().fit(x)
    assert np.array_equal(scaler.transform(x), (x - scaler.mean_) / scaler.scale_)
    assert np.array_equal(scale(x), scaler.transform(x))
    assert np.array_equal(scale(x, "minmax"), MinMaxScaler().fit_transform(x))
    single = x.astype(np.float32)
    expected = (single - scaler.mean_.astype(np.float32)) / scaler.scale_.astype(np.float32)
    assert np.array_equal(scaler.transform(single), expected)


def test_outputs_are_written_where_they_are_wanted_and_inputs_are_left_alone() -> None:
    x = RNG.normal(size=(100, 4))
    kept = x.copy()
    out = np.empty_like(x)
    assert scale(x, out=out) is out
    assert np.array_equal(x, kept)
    assert scale(x, out=x) is x
    assert np.array_equal(x, out)
    vector = RNG.normal(size=50)
    assert scale(vector).shape == (50,)
    assert np.array_equal(scale(vector), scale(vector[:, None])[:, 0])
    for odd in (kept[:, ::2], np.asfortranarray(kept), kept.astype(">f8"), (kept * 100).astype(int), kept.tolist()):
        before = np.array(odd)
        np.testing.assert_allclose(scale(odd), sklearn.preprocessing.StandardScaler().fit_transform(before), atol=1e-12)
        assert np.array_equal(np.array(odd), before)
    empty = np.empty((0, 3))
    assert StandardScaler().fit(kept[:, :3]).transform(empty).shape == (0, 3)


class Named(np.ndarray):
    """A subclass, as units and masks are."""


def of_a_file(rows: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    rows.tofile(folder / "rows")
    return np.memmap(folder / "rows", rows.dtype, "r+", shape=rows.shape)


def read_only(rows: np.ndarray, _folder: pathlib.Path) -> np.ndarray:
    rows.flags.writeable = False
    return rows


@pytest.mark.parametrize(
    "same",
    [
        lambda rows, _: torch.from_numpy(rows),
        lambda rows, _: rows.view(Named),
        lambda rows, _: memoryview(rows),
        of_a_file,
        read_only,
    ],
    ids=["torch", "subclass", "memoryview", "memmap", "read-only"],
)
def test_what_only_looks_like_an_array_is_left_alone_too(same, tmp_path: pathlib.Path) -> None:
    before = RNG.normal(size=(50, 3))
    for change in (scale, l2_normalize, StandardScaler().fit_transform, StandardScaler().fit(before).transform):
        x = same(before.copy(), tmp_path)
        assert np.array_equal(change(x), change(before.copy()))
        assert np.array_equal(np.asarray(x), before), change


def test_what_does_not_fit_is_named() -> None:
    x = np.ones((4, 3))
    scaler = StandardScaler().fit(x)
    with pytest.raises(ValueError, match="x has 2 columns, the scaler was fitted to 3"):
        scaler.transform(np.ones((4, 2)))
    with pytest.raises(ValueError, match="out has shape"):
        scaler.transform(x, np.empty((3, 4)))
    with pytest.raises(TypeError, match='out is of format "f", expected float64'):
        scaler.transform(x, np.empty((4, 3), np.float32))
    with pytest.raises(ValueError, match="out does not lie row by row"):
        scaler.transform(x, np.empty((3, 4)).T)
    frozen = np.empty((4, 3))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        scaler.transform(x, frozen)
    whole = np.zeros(24)
    with pytest.raises(ValueError, match="share part of their memory"):
        scaler.transform(whole[:12].reshape(4, 3), whole[3:15].reshape(4, 3))
    with pytest.raises(ValueError, match="not fitted"):
        StandardScaler().transform(x)
    with pytest.raises(ValueError, match="no row to fit"):
        scale(np.empty((0, 3)))
    with pytest.raises(ValueError, match="no rows of 0"):
        scale(np.empty((3, 0)))
    with pytest.raises(ValueError, match="expected rows"):
        scale(np.empty((3, 3, 3)))
    with pytest.raises(ValueError, match="range to scale into"):
        MinMaxScaler((1.0, 1.0)).fit(x)
    with pytest.raises(ValueError, match="method is 'robust'"):
        scale(x, "robust")
    with pytest.raises(ValueError, match="a pool of 0 threads"):
        scale(x, threads=0)


def test_infinity_is_an_error_with_its_row() -> None:
    x = np.ones((100, 3))
    x[41, 1] = -np.inf
    for method in ("standard", "minmax"):
        with pytest.raises(IngestError, match="row 41, column 1 is infinite") as caught:
            scale(x, method)
        assert caught.value.index == 41
    with pytest.raises(IngestError, match="row 41 holds NaN or infinity") as caught:
        l2_normalize(x)
    assert caught.value.index == 41
    assert IngestError("by hand").index is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_get_the_lengths_that_scikit_learn_gives_them(dtype: str) -> None:
    x = RNG.normal(size=(300, 37)).astype(dtype)
    x[7] = 0
    expected = sklearn.preprocessing.normalize(x)
    np.testing.assert_allclose(l2_normalize(x), expected, rtol=1e-6 if dtype == "float32" else 1e-14)
    assert l2_normalize(x, out=x) is x
    np.testing.assert_allclose(np.linalg.norm(x, axis=1)[:7], 1, rtol=1e-6)
    np.testing.assert_allclose(l2_normalize(np.array([3.0, 4.0])), [0.6, 0.8])
    assert l2_normalize(np.empty((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1000, 384), (4097, 17), (70_000, 8)])
def test_nearest_rows_are_those_of_a_full_sort(metric: str, shape: tuple[int, int]) -> None:
    matrix = RNG.normal(size=shape).astype(np.float32)
    queries = RNG.normal(size=(5, shape[1])).astype(np.float32)
    if metric == "dot":
        scores = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    else:
        scores = cosine_similarity(queries.astype(np.float64), matrix.astype(np.float64))
    indices, found = top_k(matrix, queries, 10, metric)
    k = min(10, shape[0])
    assert indices.shape == found.shape == (5, k)
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(scores, indices, 1), best, rtol=1e-4, atol=1e-4)
    alone = top_k(matrix, queries[0], 10, metric, threads=1)
    assert np.array_equal(alone[0], indices[0])
    assert np.array_equal(alone[1], found[0])


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_queries_are_answered_alike_alone_and_among_many(metric: str) -> None:
    matrix, queries = (RNG.normal(size=(rows, 64)).astype(np.float32) for rows in (10_000, 700))
    indices, found = top_k(matrix, queries, 20, metric)
    for query in (0, 255, 256, 511, 512, 699):
        alone = top_k(matrix, queries[query], 20, metric, threads=1)
        assert np.array_equal(alone[0], indices[query])
        assert np.array_equal(alone[1], found[query])


def test_equal_scores_are_in_the_order_of_the_rows_and_nan_comes_last() -> None:
    matrix = np.repeat(np.arange(4, dtype=np.float32), 1000)[:, None]
    matrix[5] = np.nan
    indices, scores = top_k(matrix, [1.0], 1002)
    assert indices[:1000].tolist() == list(range(3000, 4000))
    assert (scores[:1000] == 3).all()
    everything, _ = top_k(matrix, [1.0], 10**9)
    assert len(everything) == 4000
    assert everything[-1] == 5


def test_what_top_k_cannot_take_is_named() -> None:
    matrix = np.ones((4, 3), np.float32)
    for wrong in (matrix.astype(np.float64), matrix.astype(np.float16), matrix.astype(int)):
        with pytest.raises(TypeError, match="matrix is of format"):
            top_k(wrong, [1, 2, 3], 1)
    with pytest.raises(ValueError, match="matrix does not lie row by row"):
        top_k(np.asfortranarray(matrix), [1, 2, 3], 1)
    with pytest.raises(ValueError, match="expected 3 columns as matrix has"):
        top_k(matrix, [1, 2], 1)
    with pytest.raises(ValueError, match='metric is "l2"'):
        top_k(matrix, [1, 2, 3], 1, "l2")
    with pytest.raises(ValueError, match="k is -1"):
        top_k(matrix, [1, 2, 3], -1)
    with pytest.raises(ValueError, match="expected rows"):
        top_k(matrix[0], [1, 2, 3], 1)
    assert top_k(matrix, [1, 2, 3], 0)[0].shape == (0,)
    assert top_k(matrix[:0], [1, 2, 3], 5)[0].shape == (0,)
    assert top_k(matrix, np.empty((0, 3)), 5)[0].shape == (0, 4)


def test_threads_share_a_scaler_and_a_matrix() -> None:
    x = RNG.normal(size=(20_000, 8))
    matrix = x.astype(np.float32)
    scaler = StandardScaler(threads=2).fit(x)
    expected = scaler.transform(x), top_k(matrix, matrix[0], 5)[0]
    wrong = []

    def work() -> None:
        for _ in range(10):
            if not np.array_equal(scaler.transform(x), expected[0]) or not np.array_equal(
                top_k(matrix, matrix[0], 5, threads=2)[0], expected[1]
            ):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_threads_of_its_own() -> None:
    matrix = RNG.random((50_000, 16), dtype=np.float32)
    expected = top_k(matrix, matrix[3], 4)[0].tolist()
    child = os.fork()
    if child == 0:
        os._exit(0 if top_k(matrix, matrix[3], 4)[0].tolist() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_ctrl_c_ends_the_work() -> None:
    prepare = "import numpy as np, forebay_ingest\nmatrix = np.ones((400_000, 64), np.float32)"
    call = "forebay_ingest.top_k(matrix, np.ones((100 * times, 64), np.float32), 3)"
    assert after_ctrl_c(prepare, call, 100) < 0.25


def test_the_module_documents_what_it_offers() -> None:
    assert pathlib.Path(forebay_ingest.__file__).with_name("py.typed").exists()
    for name in forebay_ingest.__all__:
        assert getattr(forebay_ingest, name).__doc__, name
