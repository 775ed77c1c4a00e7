//! A process that tests tell what to do; see `forebay_testkit::actor`.

fn main() -> std::process::ExitCode {
    forebay_testkit::actor::main()
}
