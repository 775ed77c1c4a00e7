//! Runs the whole conformance table and prints it; see `forebay_testkit::conformance`.

fn main() -> std::process::ExitCode {
    forebay_testkit::conformance::main()
}
