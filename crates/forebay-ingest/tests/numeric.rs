//! Arrays against the plainest arithmetic. Equality with scikit-learn and NumPy is tested from Python.
#![cfg(feature = "numbers")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_ingest::numeric::{Metric, MinMaxScaler, NumericError, StandardFit, StandardScaler, l2_normalize, top_k};
use forebay_ingest::{Pool, Work, WorkError};
use proptest::prelude::*;

/// Numbers that look random and are the same in each run.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
        .collect()
}

fn plain_fit(data: &[f64], columns: usize) -> Vec<(f64, f64, f64)> {
    (0..columns)
        .map(|column| {
            let kept: Vec<f64> = data.iter().skip(column).step_by(columns).copied().filter(|x| !x.is_nan()).collect();
            let count = kept.len() as f64;
            let mean = kept.iter().sum::<f64>() / count;
            (count, mean, kept.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count)
        })
        .collect()
}

fn close(found: f64, expected: f64, scale: f64) -> bool {
    (found.is_nan() && expected.is_nan()) || (found - expected).abs() <= 1e-12 * scale.max(expected.abs())
}

fn check_fit(data: &[f64], columns: usize) {
    let fit = StandardFit::new(data, columns, &Work::here()).unwrap();
    for (column, (count, mean, variance)) in plain_fit(data, columns).into_iter().enumerate() {
        assert_eq!(fit.count[column], count);
        assert!(close(fit.mean[column], mean, 1.0), "mean of {column}: {} is not {mean}", fit.mean[column]);
        let found = fit.variance[column];
        assert!(close(found, variance, 1.0), "variance of {column}: {found} is not {variance}");
    }
}

#[test]
fn moments_of_every_shape_are_those_of_plain_sums() {
    for (rows, columns) in [
        (1, 1),
        (2, 1),
        (31, 1),
        (33, 1),
        (100_001, 1),
        (70_000, 3),
        (999, 32),
        (50, 33),
        (40, 1025),
        (7, 5000),
        (3000, 7),
    ] {
        let mut data = numbers(rows * columns, 7);
        check_fit(&data, columns);
        for at in (0..data.len()).step_by(13) {
            data[at] = f64::NAN;
        }
        check_fit(&data, columns);
    }
}

#[test]
fn a_large_mean_does_not_drown_a_small_variance() {
    let noise = numbers(200_000, 3);
    let data: Vec<f64> = noise.iter().map(|x| x + 1e9).collect();
    let fit = StandardFit::new(&data, 1, &Work::here()).unwrap();
    let [(_, _, expected)] = plain_fit(&data.iter().map(|x| x - 1e9).collect::<Vec<_>>(), 1)[..] else { panic!() };
    assert!((fit.variance[0] / expected - 1.0).abs() < 1e-12, "{} is not {expected}", fit.variance[0]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let data = numbers(300_000, 5);
    let single: Vec<f32> = data.iter().map(|&x| x as f32).collect();
    let one = Work::here();
    for threads in [2, 3] {
        let pool = Pool::new(threads).unwrap();
        let many = Work::on(&pool);
        for columns in [1, 3, 100] {
            assert_eq!(
                StandardFit::new(&data, columns, &one).unwrap(),
                StandardFit::new(&data, columns, &many).unwrap()
            );
        }
        let found = |work| top_k(&single, &single[..30], 10, 7, Metric::Cosine, work).unwrap();
        assert_eq!(found(&one), found(&many));
    }
}

#[test]
fn columns_of_one_value_are_shifted_and_not_stretched() {
    // 0.1 many times: the variance of the sum is not exactly zero.
    let data: Vec<f64> = (0..3000).flat_map(|i| [0.1, 5.0, f64::from(i)]).collect();
    let scaler = StandardScaler::fit(&data, 3, &Work::here()).unwrap();
    assert_eq!(scaler.scale()[..2], [1.0, 1.0]);
    let mut out = vec![0.0; data.len()];
    scaler.transform(&data, &mut out, &Work::here()).unwrap();
    assert!(out.iter().step_by(3).all(|x| x.abs() < 1e-14));
    let minmax = MinMaxScaler::fit(&data, 3, (-1.0, 1.0), &Work::here()).unwrap();
    let mut out = data.clone();
    minmax.transform_in_place(&mut out, &Work::here()).unwrap();
    assert_eq!(out[..2], [-1.0, -1.0]);
    assert!(out[2] == -1.0 && (out[out.len() - 1] - 1.0).abs() < 1e-15);
}

#[test]
fn nan_is_kept_and_infinity_is_named() {
    let mut data = numbers(4000, 9);
    data[5] = f64::NAN;
    let scaler = StandardScaler::fit(&data, 4, &Work::here()).unwrap();
    let mut out = vec![0.0; data.len()];
    scaler.transform(&data, &mut out, &Work::here()).unwrap();
    assert!(out.iter().enumerate().all(|(at, x)| x.is_nan() == (at == 5)));
    for at in [0, 7, 1234, 3999] {
        for (bad, name) in [(f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
            let mut data = data.clone();
            data[at] = bad;
            let standard = StandardFit::new(&data, 4, &Work::here()).unwrap_err();
            let minmax = MinMaxScaler::fit(&data, 4, (0.0, 1.0), &Work::here()).unwrap_err();
            for why in [standard, minmax] {
                assert!(
                    matches!(why, NumericError::Infinite { row, column } if (row, column) == (at / 4, at % 4)),
                    "{name}: {why}"
                );
            }
        }
    }
}

#[test]
fn numbers_whose_sum_overflows_are_no_infinity() {
    let data = [f64::MAX, f64::MAX, f64::MAX, f64::MAX];
    let fit = StandardFit::new(&data, 1, &Work::here()).unwrap();
    assert_eq!((fit.mean[0], fit.variance[0]), (f64::MAX, 0.0));
}

#[test]
fn a_column_without_numbers_has_no_statistics() {
    let data = [f64::NAN, 1.0, f64::NAN, 3.0];
    let fit = StandardFit::new(&data, 2, &Work::here()).unwrap();
    assert!(fit.mean[0].is_nan() && fit.variance[0].is_nan());
    assert_eq!((fit.mean[1], fit.variance[1]), (2.0, 1.0));
    let minmax = MinMaxScaler::fit(&data, 2, (0.0, 1.0), &Work::here()).unwrap();
    assert!(minmax.extremes().min[0].is_nan());
    assert_eq!(minmax.extremes().max[1], 3.0);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let here = &Work::here();
    assert!(matches!(StandardFit::new::<f64>(&[], 3, here), Err(NumericError::Empty)));
    for (len, columns) in [(4, 3), (4, 0), (0, 0)] {
        assert!(matches!(StandardFit::new(&vec![0.0; len], columns, here), Err(NumericError::Ragged { .. })));
    }
    let scaler = StandardScaler::fit(&[1.0, 2.0], 1, here).unwrap();
    let why = scaler.transform(&[1.0, 2.0], &mut [0.0], here).unwrap_err();
    assert_eq!(why.to_string(), "the output is 1 long, expected 2; make it that long");
    for range in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
        assert!(matches!(MinMaxScaler::fit(&[1.0], 1, range, here), Err(NumericError::Range { .. })));
    }
    assert!(StandardScaler::from_parts(vec![1.0], vec![]).is_err());
    assert!(top_k(&[0.0; 5], &[0.0; 2], 2, 1, Metric::Dot, here).is_err());
    assert!(top_k(&[], &[], 0, 1, Metric::Dot, here).is_err());
}

#[test]
fn work_can_be_stopped() {
    let yes = || true;
    let work = Work::here().stop_when(&yes);
    let data = vec![1.0f32; 10_000_000];
    assert!(matches!(
        top_k(&data, &data[..10], 10, 1, Metric::Dot, &work),
        Err(NumericError::Work(WorkError::Stopped))
    ));
}

#[test]
fn rows_get_length_one_even_if_their_squares_overflow() {
    for unit in [1.0f64, 1e-300, 1e300, 5e-324, 1.7e308] {
        let mut data = vec![0.75 * unit, unit, 0.0, 0.0];
        l2_normalize(&mut data, 2, &Work::here()).unwrap();
        let length = data[0].hypot(data[1]);
        assert!((length - 1.0).abs() < 1e-12, "{unit}: {data:?}");
        assert_eq!(data[2..], [0.0, 0.0]);
    }
    let mut single = vec![1e30f32, 1e30, 1e-30, 0.0];
    l2_normalize(&mut single, 2, &Work::here()).unwrap();
    assert_eq!(single, [0.5f32.sqrt(), 0.5f32.sqrt(), 1.0, 0.0]);
}

#[test]
fn a_row_without_a_length_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for row in [0, 3, 40_000] {
            let mut data = vec![1.0f32; 100_000];
            data[row * 2 + 1] = bad;
            let why = l2_normalize(&mut data, 2, &Work::shared()).unwrap_err();
            assert!(matches!(why, NumericError::NotFinite { row: found } if found == row), "{why}");
        }
    }
}

/// Top k by sorting everything.
fn plain_top(matrix: &[f32], query: &[f32], k: usize) -> Vec<(usize, f64)> {
    let mut all: Vec<(usize, f64)> = matrix
        .chunks(query.len())
        .map(|row| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        .enumerate()
        .collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

#[test]
fn ties_are_in_the_order_of_the_rows() {
    // Whole numbers: every product is exact.
    let matrix: Vec<f32> = (0..20_000u32).flat_map(|row| [(row % 5) as f32, 1.0, 0.0]).collect();
    let found = top_k(&matrix, &[1.0, 0.0, 0.0], 3, 4, Metric::Dot, &Work::shared()).unwrap();
    assert_eq!(found.indices, [4, 9, 14, 19]);
    assert_eq!(found.scores, [4.0; 4]);
    let all = top_k(&matrix[..30], &[0.0, 1.0, 0.0], 3, 99, Metric::Dot, &Work::here()).unwrap();
    assert_eq!((all.k, all.indices), (10, (0..10).collect()));
}

#[test]
fn nan_ranks_behind_everything() {
    let matrix = [f32::NAN, f32::NEG_INFINITY, 1.0, f32::NAN, f32::INFINITY, -1.0];
    let found = top_k(&matrix, &[1.0], 1, 6, Metric::Dot, &Work::here()).unwrap();
    assert_eq!(found.indices, [4, 2, 5, 1, 0, 3]);
    let three = top_k(&matrix, &[1.0], 1, 3, Metric::Dot, &Work::here()).unwrap();
    assert_eq!(three.indices, [4, 2, 5]);
    let nothing = top_k(&[f32::NAN; 9], &[1.0], 1, 3, Metric::Dot, &Work::here()).unwrap();
    assert_eq!(nothing.indices, [0, 1, 2]);
}

#[test]
fn the_cosine_of_a_zero_vector_is_zero() {
    let matrix = [0.0, 0.0, -1.0, 0.0, 3.0, 4.0];
    let found = top_k(&matrix, &[6.0, 8.0, 0.0, 0.0], 2, 3, Metric::Cosine, &Work::here()).unwrap();
    assert_eq!(found.indices, [2, 0, 1, 0, 1, 2]);
    assert_eq!(found.scores, [1.0, 0.0, -0.6, 0.0, 0.0, 0.0]);
}

proptest! {
    #[test]
    fn nearest_rows_are_those_of_a_sort(
        rows in 1usize..300, dim in 1usize..40, count in 1usize..6, k in 0usize..12, seed: u64, coarse: bool,
    ) {
        let make = |n, seed| -> Vec<f32> {
            // Coarse numbers make many equal scores; their sums are exact.
            let grain = if coarse { 4.0 } else { 1e6 };
            numbers(n, seed).iter().map(|x| ((x * grain).round() / grain) as f32).collect()
        };
        let (matrix, queries) = (make(rows * dim, seed), make(count * dim, seed ^ 0xabcd));
        let found = top_k(&matrix, &queries, dim, k, Metric::Dot, &Work::here()).unwrap();
        prop_assert_eq!(found.k, k.min(rows));
        for (q, query) in queries.chunks(dim).enumerate() {
            let mine = q * found.k..(q + 1) * found.k;
            let expected = plain_top(&matrix, query, k);
            for ((&row, &score), (expected_row, expected_score)) in
                found.indices[mine.clone()].iter().zip(&found.scores[mine]).zip(expected)
            {
                prop_assert!((f64::from(score) - expected_score).abs() < 1e-4);
                if coarse {
                    prop_assert_eq!(row as usize, expected_row);
                }
            }
            // One query alone has the same scores, to the last bit.
            let alone = top_k(&matrix, query, dim, k, Metric::Dot, &Work::here()).unwrap();
            prop_assert_eq!(&alone.scores, &found.scores[q * found.k..(q + 1) * found.k]);
        }
    }

    #[test]
    fn scaling_in_place_and_into_an_output_are_one(columns in 1usize..40, rows in 1usize..50, seed: u64) {
        let data = numbers(rows * columns, seed);
        let scaler = StandardScaler::fit(&data, columns, &Work::here()).unwrap();
        let mut out = vec![0.0; data.len()];
        scaler.transform(&data, &mut out, &Work::here()).unwrap();
        let mut place = data.clone();
        scaler.transform_in_place(&mut place, &Work::here()).unwrap();
        prop_assert_eq!(&out, &place);
        for (at, x) in data.iter().enumerate() {
            prop_assert_eq!(out[at], (x - scaler.mean()[at % columns]) / scaler.scale()[at % columns]);
        }
    }
}
