//! The pairwise part of the conformance table, one test a behaviour; all of it: `forebay-conformance`.

use std::path::PathBuf;

use forebay_testkit::conformance::{behaviours, combinations, run};

/// Runs one behaviour in every pairwise combination.
fn pairwise(name: &str) {
    let behaviours = behaviours();
    let behaviour = behaviours.iter().find(|behaviour| behaviour.name == name);
    let behaviour = behaviour.unwrap_or_else(|| panic!("the table has no {name}"));
    let cells: Vec<_> = combinations(true)
        .into_iter()
        .map(|combination| run(behaviour, combination, PathBuf::from(env!("CARGO_BIN_EXE_forebay-actor"))))
        .filter(|cell| !matches!(cell.outcome.as_str(), "pass" | "none"))
        .collect();
    assert!(cells.is_empty(), "{cells:#?}");
}

macro_rules! table {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            pairwise(stringify!($name));
        })*

        #[test]
        fn every_behaviour_of_the_table_is_run_here() {
            let here = [$(stringify!($name)),*];
            let table: Vec<_> = behaviours().iter().map(|behaviour| behaviour.name).collect();
            assert_eq!(here[..], table[..]);
        }
    };
}

table! {
    hands_over_every_word_in_place
    delivers_first_deliveries_in_the_order_of_publishing
    wakes_a_consumer_that_sleeps
    wakes_a_producer_that_waits_for_a_slot
    keeps_a_held_message_while_the_ring_goes_on
    takes_slots_back_in_any_order
    gives_each_message_to_whom_the_kind_says
    carries_every_dtype_rank_and_empty_tensors
    carries_user_data_and_several_tensors
    takes_the_smallest_slot_that_fits_then_the_next_one_up
    refuses_a_message_larger_than_the_largest_slot
    refuses_another_schema_with_a_difference
    fails_at_once_when_full_and_says_who_holds_what
    drops_the_oldest_and_counts_it
    stops_at_the_quota_and_lists_what_is_held
    says_closed_once_everything_was_received
    serves_a_ring_of_one_consumer
    brings_back_what_was_nacked
    brings_back_what_was_not_acked
    hands_dead_letters_to_the_producer
    keeps_messages_while_nobody_is_attached
    a_killed_consumer_costs_no_message_and_no_slot
    a_killed_producer_costs_nothing_it_published
}
