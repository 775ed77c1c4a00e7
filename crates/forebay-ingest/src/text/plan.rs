//! Which rows go into one batch, so that little of it is padding.
//!
//! A padded batch is as wide as its longest row. Rows of like length together waste little; a budget of padded tokens
//! lets short rows come in larger batches than long ones, so that every batch is about the same work.

use super::tokens::waste;

/// What a batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Rows of a batch at most.
    pub max_rows: usize,
    /// Padded tokens of a batch at most; `None` for no such limit. A row that is longer alone gets a batch of its own.
    pub max_tokens: Option<usize>,
    /// Rounds widths up, as [`RowOptions::pad_to_multiple_of`](super::RowOptions::pad_to_multiple_of) does.
    pub pad_to_multiple_of: usize,
    /// Whether rows keep their order, so that a batch is a run of them; else they are sorted by length.
    pub keep_order: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { max_rows: 32, max_tokens: None, pad_to_multiple_of: 1, keep_order: false }
    }
}

/// One batch of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBatch {
    /// Its rows, by index; by length, those of equal length in their order.
    pub rows: Vec<usize>,
    /// Its width, in tokens.
    pub cols: usize,
}

/// How rows are cut into batches, and what that wastes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The batches, longest rows first unless the order is kept: what does not fit into memory shows at once.
    pub batches: Vec<PlannedBatch>,
    /// Tokens of all rows.
    pub real_tokens: usize,
    /// Tokens of all batches with padding.
    pub padded_tokens: usize,
}

impl Plan {
    /// Plans rows of these `lengths`. Every row is in exactly one batch.
    ///
    /// ```
    /// use forebay_ingest::{Plan, PlanOptions};
    ///
    /// let lengths = [2, 30, 3, 31, 2, 29];
    /// let as_they_come = Plan::new(&lengths, &PlanOptions { max_rows: 2, keep_order: true, ..Default::default() });
    /// let by_length = Plan::new(&lengths, &PlanOptions { max_rows: 2, ..Default::default() });
    /// assert_eq!((as_they_come.padded_tokens, by_length.padded_tokens), (180, 124));
    /// assert!(by_length.waste() < 0.25);
    /// ```
    #[must_use]
    pub fn new(lengths: &[usize], options: &PlanOptions) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        if !options.keep_order {
            order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
        }
        let mut plan = Self { real_tokens: lengths.iter().sum(), ..Self::default() };
        let mut rows = Vec::new();
        let mut longest = 0;
        for row in order {
            let width = options.width(longest.max(lengths[row]));
            let full = rows.len() >= options.max_rows.max(1)
                || options.max_tokens.is_some_and(|most| width.saturating_mul(rows.len() + 1) > most);
            if full && !rows.is_empty() {
                plan.push(std::mem::take(&mut rows), options.width(longest));
                longest = 0;
            }
            rows.push(row);
            longest = longest.max(lengths[row]);
        }
        if !rows.is_empty() {
            plan.push(rows, options.width(longest));
        }
        plan
    }

    fn push(&mut self, rows: Vec<usize>, cols: usize) {
        self.padded_tokens += rows.len() * cols;
        self.batches.push(PlannedBatch { rows, cols });
    }

    /// Share of the padded tokens that is padding, 0 to 1.
    #[must_use]
    pub fn waste(&self) -> f64 {
        waste(self.real_tokens, self.padded_tokens)
    }
}

impl PlanOptions {
    fn width(&self, longest: usize) -> usize {
        longest.next_multiple_of(self.pad_to_multiple_of.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_is_in_one_batch_and_no_batch_is_over_its_limits(
            lengths in proptest::collection::vec(0usize..200, 0..80),
            max_rows in 1usize..20,
            max_tokens in proptest::option::of(1usize..1000),
            pad_to_multiple_of in 1usize..17,
            keep_order: bool,
        ) {
            let options = PlanOptions { max_rows, max_tokens, pad_to_multiple_of, keep_order };
            let plan = Plan::new(&lengths, &options);
            let mut seen: Vec<usize> = plan.batches.iter().flat_map(|batch| batch.rows.clone()).collect();
            if keep_order {
                prop_assert!(seen.is_sorted());
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &plan.batches {
                let longest = batch.rows.iter().map(|&row| lengths[row]).max().unwrap();
                prop_assert!(batch.cols >= longest && batch.cols < longest + pad_to_multiple_of);
                prop_assert!(batch.rows.len() <= max_rows);
                prop_assert!(batch.rows.len() == 1 || batch.cols * batch.rows.len() <= max_tokens.unwrap_or(usize::MAX));
            }
            let padded: usize = plan.batches.iter().map(|batch| batch.cols * batch.rows.len()).sum();
            prop_assert_eq!(plan.padded_tokens, padded);
            prop_assert_eq!(plan.real_tokens, lengths.iter().sum::<usize>());
        }
    }
}
