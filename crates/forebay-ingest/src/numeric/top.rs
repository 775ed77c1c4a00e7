//! The rows of an embedding matrix nearest to a query.
//!
//! ```text
//!   queries ── groups, one after the other
//!   matrix ── jobs of rows (any thread) ── blocks of rows: scores of each query, then its heap of k
//!   heaps of all jobs ── sorted, cut at k
//! ```
//!
//! No array of all scores is made: a job holds at most 1,024 scores and k candidates a query of its group.

use std::cmp::Ordering;

use super::dot::{self, TILE_QUERIES};
use super::error::{self, NumericError};
use crate::work::Work;

/// How near is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Metric {
    /// The sum of products. The cosine, if all lengths are 1 (see [`l2_normalize`](super::l2_normalize)).
    #[default]
    Dot,
    /// The product divided by both lengths; 0 if one of them is 0.
    Cosine,
}

/// What [`top_k`] found: `k` rows of the matrix for each query, nearest first.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Neighbors {
    /// Neighbours of each query: what was asked for, or as many as there are rows.
    pub k: usize,
    /// Numbers of rows, queries × k.
    pub indices: Vec<i64>,
    /// Their scores, queries × k.
    pub scores: Vec<f32>,
}

/// A row and its score.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    row: usize,
}

impl Candidate {
    /// Less is nearer: by score, NaN last, then by the number of the row.
    fn compare(&self, other: &Self) -> Ordering {
        let by_score = match (self.score.is_nan(), other.score.is_nan()) {
            (false, false) => other.score.partial_cmp(&self.score).unwrap_or(Ordering::Equal),
            (mine, others) => mine.cmp(&others),
        };
        by_score.then(self.row.cmp(&other.row))
    }
}

/// The nearest so far, the farthest of them on top.
#[derive(Debug)]
struct Nearest {
    k: usize,
    heap: Vec<Candidate>,
    /// Score that a later row must exceed; NaN while anything is welcome.
    bar: f32,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self { k, heap: Vec::with_capacity(k), bar: f32::NAN }
    }

    /// Whether a later row with this score has to be looked at; NaN, of score or bar, is not compared here.
    #[inline(always)]
    fn may_be_near(&self, score: f32) -> bool {
        (score > self.bar) | score.is_nan() | self.bar.is_nan()
    }

    /// Offers rows in their order.
    fn offer(&mut self, first_row: usize, scores: &[f32]) {
        for (block, scores) in scores.chunks(BLOCK_ROWS).enumerate() {
            // Most hold nothing near enough: one look without branches says so.
            if scores.iter().fold(0u32, |some, &score| some | u32::from(self.may_be_near(score))) == 0 {
                continue;
            }
            for (row, &score) in scores.iter().enumerate() {
                if self.may_be_near(score) {
                    self.push(Candidate { score, row: first_row + block * BLOCK_ROWS + row });
                }
            }
        }
    }

    fn push(&mut self, new: Candidate) {
        if self.heap.len() < self.k {
            self.heap.push(new);
            let mut at = self.heap.len() - 1;
            while at > 0 {
                let parent = (at - 1) / 2;
                if self.heap[at].compare(&self.heap[parent]) != Ordering::Greater {
                    break;
                }
                self.heap.swap(at, parent);
                at = parent;
            }
        } else if new.compare(&self.heap[0]) == Ordering::Less {
            self.heap[0] = new;
            let mut at = 0;
            loop {
                let (left, right) = (2 * at + 1, 2 * at + 2);
                let farther = |a: usize, b: usize| match self.heap.get(b) {
                    Some(other) if other.compare(&self.heap[a]) == Ordering::Greater => b,
                    _ => a,
                };
                let farthest = farther(farther(at, left), right);
                if farthest == at {
                    break;
                }
                self.heap.swap(at, farthest);
                at = farthest;
            }
        }
        if self.heap.len() == self.k {
            // NaN as long as the farthest is: everything is looked at, and `compare` decides.
            self.bar = self.heap[0].score;
        }
    }
}

/// Rows whose scores are held at a time: what is gone over again stays in the cache.
const BLOCK_ROWS: usize = 64;
/// The same where each row is read once.
const LONG_BLOCK_ROWS: usize = 1024;
const _: () = assert!(LONG_BLOCK_ROWS >= BLOCK_ROWS * TILE_QUERIES, "scores of either fit");
/// Least elements of the matrix in a job, and the most jobs.
const JOB_ELEMENTS: usize = 1 << 18;
const MOST_JOBS: usize = 1024;
/// Most memory for the candidates of a group of queries, and most queries in it: more would only make jobs longer, and within
/// a job nobody is asked whether to stop.
const GROUP_BYTES: usize = 64 << 20;
const GROUP_QUERIES: usize = 256;

/// Rows in a job. Jobs are larger when there is more to find, so that candidates stay few beside rows.
fn job_rows(rows: usize, dim: usize, k: usize) -> usize {
    let most_jobs = MOST_JOBS.min(rows.div_ceil(k.saturating_mul(8)));
    (JOB_ELEMENTS / dim).max(rows.div_ceil(most_jobs)).next_multiple_of(BLOCK_ROWS)
}

/// Queries that are searched for together, in so many jobs: as many as have room in `bytes`, but never less than are
/// multiplied together. By the number of jobs these have 4 bytes a row, and 32 for each of the `k`.
fn group_queries(jobs: usize, k: usize, bytes: usize) -> usize {
    let query_bytes = jobs.saturating_mul(k).saturating_mul(size_of::<Candidate>());
    let fit = (bytes / query_bytes.max(1)).min(GROUP_QUERIES);
    (fit - fit % TILE_QUERIES).max(TILE_QUERIES)
}

/// Finds the `k` rows of `matrix` nearest to each query, exactly.
///
/// `matrix` and `queries` are rows of `dim` elements. Equal scores are in the order of the rows; a score that is NaN comes
/// after all others. With fewer than `k` rows all of them come back, see [`Neighbors::k`]. The score of a row does not
/// depend on the other queries or on the threads. Extra memory: some 64 MiB at most, or if that is more 6 bytes for each row
/// and 48 for each of the `k`.
///
/// # Errors
/// [`NumericError`] if matrix or queries are not whole rows of `dim`, or the work was stopped.
pub fn top_k(
    matrix: &[f32],
    queries: &[f32],
    dim: usize,
    k: usize,
    metric: Metric,
    work: &Work<'_>,
) -> Result<Neighbors, NumericError> {
    grouped(matrix, queries, dim, k, metric, work, GROUP_BYTES)
}

/// As [`top_k`], with so many bytes for candidates.
fn grouped(
    matrix: &[f32],
    queries: &[f32],
    dim: usize,
    k: usize,
    metric: Metric,
    work: &Work<'_>,
    bytes: usize,
) -> Result<Neighbors, NumericError> {
    let rows = error::rows("the matrix", matrix.len(), dim)?;
    let count = error::rows("the queries", queries.len(), dim)?;
    let k = k.min(rows);
    if k == 0 || count == 0 {
        return Ok(Neighbors { k, indices: Vec::new(), scores: Vec::new() });
    }
    let mut lengths = vec![1.0; count];
    if metric == Metric::Cosine {
        dot::with_itself(queries, dim, &mut lengths);
        lengths.iter_mut().for_each(|length| *length = length.sqrt());
    }
    let job_rows = job_rows(rows, dim, k);
    let group = group_queries(rows.div_ceil(job_rows), k, bytes);
    let (mut indices, mut scores) = (Vec::with_capacity(count * k), Vec::with_capacity(count * k));
    let mut all = Vec::new();
    for (queries, lengths) in queries.chunks(group.saturating_mul(dim)).zip(lengths.chunks(group)) {
        if !indices.is_empty() {
            // A group may be a single job, within which nobody is asked.
            work.go_on()?;
        }
        let search = Search { queries, dim, lengths, k, metric };
        let jobs = matrix.chunks(job_rows.saturating_mul(dim)).enumerate();
        let parts = work.map(jobs, |(job, part)| search.job(job * job_rows, part))?;
        for query in 0..lengths.len() {
            all.clear();
            parts.iter().for_each(|part| all.extend_from_slice(&part[query].heap));
            all.sort_unstable_by(Candidate::compare);
            indices.extend(all[..k].iter().map(|found| found.row as i64));
            scores.extend(all[..k].iter().map(|found| found.score));
        }
    }
    Ok(Neighbors { k, indices, scores })
}

/// A group of queries.
struct Search<'a> {
    queries: &'a [f32],
    dim: usize,
    lengths: &'a [f32],
    k: usize,
    metric: Metric,
}

impl Search<'_> {
    fn query(&self, index: usize) -> &[f32] {
        &self.queries[index * self.dim..][..self.dim]
    }

    /// The nearest rows of a part of the matrix.
    fn job(&self, first_row: usize, part: &[f32]) -> Vec<Nearest> {
        let rows = part.len() / self.dim;
        let mut found: Vec<Nearest> = self.lengths.iter().map(|_| Nearest::new(self.k.min(rows))).collect();
        let mut scores = [0.0; LONG_BLOCK_ROWS];
        let mut lengths = [0.0; BLOCK_ROWS];
        let once = found.len() == 1 && self.metric == Metric::Dot;
        let block_rows = if once { LONG_BLOCK_ROWS } else { BLOCK_ROWS };
        for (block, data) in part.chunks(block_rows * self.dim).enumerate() {
            let rows = data.len() / self.dim;
            let first = first_row + block * block_rows;
            if self.metric == Metric::Cosine {
                dot::with_itself(data, self.dim, &mut lengths[..rows]);
                lengths[..rows].iter_mut().for_each(|length| *length = length.sqrt());
            }
            let pairs = found.len() / TILE_QUERIES;
            for pair in 0..pairs {
                let first_query = pair * TILE_QUERIES;
                let queries = std::array::from_fn(|q| self.query(first_query + q));
                dot::with_several(data, queries, &mut scores[..rows * TILE_QUERIES], rows);
                for q in 0..TILE_QUERIES {
                    let scores = &mut scores[q * rows..][..rows];
                    self.finish(first_query + q, scores, &lengths);
                    found[first_query + q].offer(first, scores);
                }
            }
            for (query, found) in found.iter_mut().enumerate().skip(pairs * TILE_QUERIES) {
                dot::with_one(data, self.query(query), &mut scores[..rows]);
                self.finish(query, &mut scores[..rows], &lengths);
                found.offer(first, &scores[..rows]);
            }
        }
        found
    }

    fn finish(&self, query: usize, scores: &mut [f32], lengths: &[f32]) {
        if self.metric == Metric::Cosine {
            for (score, length) in scores.iter_mut().zip(lengths) {
                let both = length * self.lengths[query];
                *score = if both == 0.0 { 0.0 } else { *score / both };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn candidates_of_a_group_have_room_in_what_is_said() {
        for rows in [1, 100, 10_000, 1_000_000, 100_000_000, 1 << 40] {
            for dim in [1, 8, 384, 4096] {
                for k in [1, 2, 10, 100, 10_000, 1_000_000].map(|k: usize| k.min(rows)) {
                    let jobs = rows.div_ceil(job_rows(rows, dim, k));
                    let group = group_queries(jobs, k, GROUP_BYTES);
                    let held = group * jobs * k * size_of::<Candidate>();
                    assert!(held <= GROUP_BYTES.max(4 * rows + 32 * k), "{rows} × {dim}, {k}: {held}");
                    assert!((TILE_QUERIES..=GROUP_QUERIES).contains(&group) && group.is_multiple_of(TILE_QUERIES));
                }
            }
        }
        // A million rows and 10,000 queries, which kept 15 GB.
        assert_eq!(group_queries(1_000_000usize.div_ceil(job_rows(1_000_000, 384, 100)), 100, GROUP_BYTES), 42);
        assert_eq!(group_queries(usize::MAX, usize::MAX, GROUP_BYTES), TILE_QUERIES);
    }

    #[test]
    fn groups_change_nothing() {
        let k = 5;
        let number = |at: usize| (at * 7919 % 1009) as f32 / 64.0 - 8.0;
        let pool = Pool::new(2).unwrap();
        // Several jobs; and more queries than a group may have.
        for (rows, dim, count) in [(600, 1024, 7), (70, 3, 2 * GROUP_QUERIES + 5)] {
            let matrix: Vec<f32> = (0..rows * dim).map(number).collect();
            let queries: Vec<f32> = (0..count * dim).map(|at| number(at * at + 3)).collect();
            let jobs = rows.div_ceil(job_rows(rows, dim, k));
            assert_eq!(jobs > 1, count == 7);
            for metric in [Metric::Dot, Metric::Cosine] {
                let find = |queries: &[f32], work: Work<'_>, bytes| {
                    grouped(&matrix, queries, dim, k, metric, &work, bytes).unwrap()
                };
                let alone: Vec<_> = queries.chunks(dim).map(|query| find(query, Work::here(), GROUP_BYTES)).collect();
                // As many as may be, four, two.
                for bytes in [GROUP_BYTES, 4 * jobs * k * size_of::<Candidate>(), 0] {
                    for work in [Work::here(), Work::on(&pool)] {
                        let found = find(&queries, work, bytes);
                        assert!(found.indices.iter().eq(alone.iter().flat_map(|one| &one.indices)), "{bytes} bytes");
                        assert!(found.scores.iter().eq(alone.iter().flat_map(|one| &one.scores)), "{bytes} bytes");
                    }
                }
            }
        }
    }

    #[test]
    fn it_stops_between_groups_of_a_single_job() {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() == 2
        };
        let work = Work::here().stop_when(&stop);
        let queries = vec![1.0; 4 * GROUP_QUERIES];
        assert!(top_k(&[1.0; 9], &queries, 1, 3, Metric::Dot, &work).is_err());
        assert_eq!(asked.get(), 2);
        // One group is over without a question.
        assert!(top_k(&[1.0; 9], &queries[..GROUP_QUERIES], 1, 3, Metric::Dot, &work).is_ok());
        assert_eq!(asked.get(), 2);
    }
}
