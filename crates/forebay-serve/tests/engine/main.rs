//! The engine with real worker processes: what they answer, and what happens when they do not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// A test with a place of its own, which fails if it hangs.
macro_rules! engine_test {
    ($(#[$doc:meta])* async fn $name:ident($place:ident: Place) $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            crate::log();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let $place = crate::place::Place::new();
            runtime.block_on(async { tokio::time::timeout(2 * crate::place::PATIENCE, async $body).await.expect("it hangs") });
        }
    };
}

mod answers;
mod deaths;
mod failures;
mod generating;
mod place;
mod reloads;
mod seen;
mod worker;

/// Not a test: what the workers of the others are.
#[test]
fn worker_process() {
    worker::work();
}

/// The log of the engine, on standard error, if `RUST_LOG` is set.
fn log() {
    if let Ok(level) = std::env::var("RUST_LOG") {
        let level: tracing_subscriber::filter::LevelFilter = level.parse().unwrap();
        let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).try_init();
    }
}
