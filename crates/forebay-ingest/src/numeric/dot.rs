//! Dot products of `f32` rows, several at a time.
//!
//! Each product has eight lanes: lane l takes the elements l, l + 8, l + 16, …; the lanes are added pairwise, then the
//! elements left over one by one. That is fixed, so a product does not depend on how many are worked on together: the
//! score of a row is the same for one query and for a hundred.

use multiversion::{multiversion, target::target_cfg_f};

const LANES: usize = 8;

/// Rows and queries of a tile for several queries: as many sums as there are registers.
pub(crate) const TILE_ROWS: usize = 4;
pub(crate) const TILE_QUERIES: usize = 2;
/// Places of a matrix that are read at once for a single query.
const STREAMS: usize = 4;

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { a * b + sum }
}

/// The products of `R` rows and `Q` queries, each `dim` long.
#[inline(always)]
fn tile<const FUSED: bool, const R: usize, const Q: usize>(
    rows: [&[f32]; R],
    queries: [&[f32]; Q],
    dim: usize,
) -> [[f32; Q]; R] {
    let whole = dim / LANES;
    let rows = rows.map(|row| row[..dim].as_chunks::<LANES>());
    let queries = queries.map(|query| query[..dim].as_chunks::<LANES>());
    let mut sums = [[[0f32; LANES]; Q]; R];
    for step in 0..whole {
        for r in 0..R {
            let row = &rows[r].0[step];
            for q in 0..Q {
                let query = &queries[q].0[step];
                for lane in 0..LANES {
                    sums[r][q][lane] = multiply_add::<FUSED>(row[lane], query[lane], sums[r][q][lane]);
                }
            }
        }
    }
    std::array::from_fn(|r| {
        std::array::from_fn(|q| {
            let s = &sums[r][q];
            let mut sum = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
            for (&a, &b) in rows[r].1.iter().zip(queries[q].1) {
                sum = multiply_add::<FUSED>(a, b, sum);
            }
            sum
        })
    })
}

/// The products of consecutive rows of `rows` with one query.
///
/// The rows are gone through in [`STREAMS`] places at once, which is how fast memory gives them: at the end of a page one
/// stream begins anew while the others go on.
#[inline(always)]
fn column<const FUSED: bool>(rows: &[f32], query: &[f32], scores: &mut [f32]) {
    let dim = query.len();
    let each = scores.len() / STREAMS;
    for row in 0..each {
        let some = std::array::from_fn::<_, STREAMS, _>(|s| &rows[(s * each + row) * dim..][..dim]);
        let products = tile::<FUSED, STREAMS, 1>(some, [query], dim);
        for (s, [product]) in products.into_iter().enumerate() {
            scores[s * each + row] = product;
        }
    }
    let left = each * STREAMS;
    for (row, score) in rows[left * dim..].chunks_exact(dim).zip(&mut scores[left..]) {
        *score = tile::<FUSED, 1, 1>([row], [query], dim)[0][0];
    }
}

/// The products of consecutive rows with [`TILE_QUERIES`] queries, `scores` query by query.
#[inline(always)]
fn columns<const FUSED: bool>(rows: &[f32], queries: [&[f32]; TILE_QUERIES], scores: &mut [f32], count: usize) {
    let dim = queries[0].len();
    let groups = count / TILE_ROWS;
    for group in 0..groups {
        let first = group * TILE_ROWS;
        let some = std::array::from_fn::<_, TILE_ROWS, _>(|r| &rows[(first + r) * dim..][..dim]);
        let products = tile::<FUSED, TILE_ROWS, TILE_QUERIES>(some, queries, dim);
        for (r, products) in products.into_iter().enumerate() {
            for (q, product) in products.into_iter().enumerate() {
                scores[q * count + first + r] = product;
            }
        }
    }
    for row in groups * TILE_ROWS..count {
        let [products] = tile::<FUSED, 1, TILE_QUERIES>([&rows[row * dim..][..dim]], queries, dim);
        for (q, product) in products.into_iter().enumerate() {
            scores[q * count + row] = product;
        }
    }
}

/// Writes the product of each row of `rows` with `query` to `scores`.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(crate) fn with_one(rows: &[f32], query: &[f32], scores: &mut [f32]) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        column::<true>(rows, query, scores);
    } else {
        column::<false>(rows, query, scores);
    }
}

/// Writes the products of `count` rows with several queries, query by query, to `scores`.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(crate) fn with_several(rows: &[f32], queries: [&[f32]; TILE_QUERIES], scores: &mut [f32], count: usize) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        columns::<true>(rows, queries, scores, count);
    } else {
        columns::<false>(rows, queries, scores, count);
    }
}

/// Writes the squared length of each row of `rows` to `out`, in the arithmetic of the products.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(crate) fn with_itself(rows: &[f32], dim: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        *out = if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
            tile::<true, 1, 1>([row], [row], dim)[0][0]
        } else {
            tile::<false, 1, 1>([row], [row], dim)[0][0]
        };
    }
}
