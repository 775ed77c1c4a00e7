//! `forebay serve` as a process: how it starts, what it refuses, how it ends. Its workers are this test binary again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use common::{PATIENCE, Place, Running, finish, watchdog};
use forebay::{
    DType, FieldSpec,
    service::{Error, Server},
};

/// Not a test: what the workers of the others are. Each item is doubled; a 100 takes until there is a file `go`.
#[test]
fn worker_process() {
    let Ok(service) = std::env::var("FOREBAY_SERVICE") else { return };
    fs::write(format!("worker-{}", std::process::id()), "").unwrap();
    let mut server = Server::options(&service).answer_slot_bytes(1 << 16).attach().unwrap();
    server.ready("test").unwrap();
    loop {
        let request = match server.recv() {
            Ok(request) => request,
            Err(Error::Closed { .. }) => std::process::exit(0),
            Err(_) => std::process::exit(1),
        };
        let x: Vec<f32> = request.message().as_slice::<f32>("x").unwrap().to_vec();
        if x.contains(&100.0) {
            fs::write("waiting", "").unwrap();
            while !fs::exists("go").unwrap() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let mut loan = server.answer(&request, &[FieldSpec::new("y", DType::F32, &[x.len() as u64])]).unwrap();
        for (y, x) in loan.tensor_mut::<f32>("y").unwrap().iter_mut().zip(&x) {
            *y = 2.0 * x;
        }
        loan.publish().unwrap();
    }
}

/// A place with a configuration; `more` is added to it.
fn place(more: &str) -> Place {
    let place = Place::new();
    let test = std::env::current_exe().unwrap();
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [model]
        name = "double"
        [model.input]
        type = "tensors"
        tensors = [{{ name = "x", dtype = "float32" }}]
        [worker]
        command = ["{}", "--exact", "worker_process", "--nocapture", "--test-threads=1"]
        {more}
        "#,
        test.display()
    );
    place.write("serve.toml", text);
    place
}

fn serve(place: &Place) -> Running {
    let mut command = place.command("serve");
    command.args(["--config", "serve.toml"]);
    Running::start(command)
}

/// The address it says that it listens on.
fn address(running: &Running) -> String {
    let line = running.wait_for("listening on http://");
    let rest = line.split("listening on http://").nth(1).unwrap();
    rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect()
}

/// A request; the status and the body of the answer.
fn http(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()))
}

fn infer(address: &str, x: f32) -> std::io::Result<(u16, String)> {
    let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{x}]}}]}}"#);
    http(address, "POST", "/v2/models/double/infer", &body)
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "waited too long until: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn until_ready(address: &str) {
    until("it is ready", || http(address, "GET", "/readyz", "").is_ok_and(|(status, _)| status == 200));
}

/// Process ids of all workers that were ever started.
fn workers(place: &Place) -> Vec<u32> {
    let files = fs::read_dir(place.path("")).unwrap().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("worker-").and_then(|pid| pid.parse().ok())).collect()
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn it_serves_and_leaves_nothing_when_it_is_asked_to_end() {
    let (place, _dog) = (place(""), watchdog());
    let mut running = serve(&place);
    let address = address(&running);
    until_ready(&address);
    let (status, body) = infer(&address, 21.0).unwrap();
    assert!(status == 200 && body.contains("42"), "{status} {body}");
    running.signal("TERM");
    running.end().assert_code(0).assert_says(&["ready", "stopping", "stopped"]);
    assert!(workers(&place).iter().all(|&pid| !lives(pid)));
    place.assert_clean();
}

#[test]
fn sigterm_lets_a_request_finish_while_new_ones_are_refused() {
    let (place, _dog) = (place(""), watchdog());
    let mut running = serve(&place);
    let address = address(&running);
    until_ready(&address);
    let slow = thread::spawn({
        let address = address.clone();
        move || infer(&address, 100.0).unwrap()
    });
    let waiting = place.path("waiting");
    until("the worker has it", || waiting.exists());
    running.signal("TERM");
    running.wait_for("stopping");
    // Listening ends or new requests are refused; neither is an answer.
    assert!(infer(&address, 1.0).map_or(true, |(status, _)| status == 503));
    assert!(!running.has_ended());
    place.write("go", "");
    let (status, body) = slow.join().unwrap();
    assert!(status == 200 && body.contains("200"), "{status} {body}");
    running.end().assert_code(0);
}

#[test]
fn a_second_signal_ends_it_at_once_and_its_workers_with_it() {
    let (place, _dog) = (place(""), watchdog());
    let mut running = serve(&place);
    let address = address(&running);
    until_ready(&address);
    let slow = thread::spawn(move || infer(&address, 100.0));
    let waiting = place.path("waiting");
    until("the worker has it", || waiting.exists());
    running.signal("INT");
    running.wait_for("stopping");
    running.signal_until_it_ends("INT");
    running.end().assert_code(130);
    assert!(slow.join().unwrap().map_or(true, |(status, _)| status != 200));
    until("the workers are gone", || workers(&place).iter().all(|&pid| !lives(pid)));
}

#[test]
fn workers_end_with_a_daemon_that_is_killed() {
    let (place, _dog) = (place("count = 2"), watchdog());
    let running = serve(&place);
    let address = address(&running);
    until_ready(&address);
    until("both are there", || workers(&place).len() == 2);
    drop(running.kill());
    until("the workers are gone", || workers(&place).iter().all(|&pid| !lives(pid)));
}

#[test]
fn sighup_replaces_the_workers() {
    let (place, _dog) = (place(""), watchdog());
    let mut running = serve(&place);
    let address = address(&running);
    until_ready(&address);
    let before = workers(&place);
    running.signal("HUP");
    running.wait_for("all workers are new");
    let (status, _) = infer(&address, 1.0).unwrap();
    assert_eq!(status, 200);
    until("the old one is gone", || before.iter().all(|&pid| !lives(pid)));
    assert_eq!(workers(&place).len(), 2);
    running.signal("TERM");
    running.end().assert_code(0);
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_is_started() {
    let _dog = watchdog();
    let cases = [
        ("[batch]\nmax_itms = 4", "batch.max_itms"),
        ("[batch]\nmax_items = 0", "batch.max_items"),
        ("slot_bytes = 1", "worker.slot_bytes"),
        ("[[model.parameters]]\nname = \"n\"\ndtype = \"uint8\"\ndefault = 300", "model.parameters[0].default"),
    ];
    for (more, key) in cases {
        let place = place(more);
        for check in [true, false] {
            let mut command = place.command("serve");
            command.args(["--config", "serve.toml"]);
            if check {
                command.arg("--check-config");
            }
            finish(command).assert_code(64).assert_says(&[key]);
        }
        assert!(workers(&place).is_empty());
    }
    let place = place("");
    let mut command = place.command("serve");
    command.args(["--config", "missing.toml"]);
    finish(command).assert_code(64).assert_says(&["missing.toml"]);
}

#[test]
fn check_config_says_what_it_amounts_to() {
    let (place, _dog) = (place(""), watchdog());
    let mut command = place.command("serve");
    command.args(["--config", "serve.toml", "--check-config", "--set", "worker.count=3"]);
    finish(command).assert_code(0).assert_says(&["double", "tensors (x)", "3 workers"]);
    assert!(workers(&place).is_empty());
}

#[test]
fn a_port_that_is_taken_starts_no_worker() {
    let (place, _dog) = (place(""), watchdog());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = place.command("serve");
    command.args(["--config", "serve.toml", "--listen", &taken.local_addr().unwrap().to_string()]);
    finish(command).assert_code(1).assert_says(&["cannot listen on", "server.listen"]);
    // That of gRPC as well, in builds that have it.
    let mut command = place.command("serve");
    let grpc = format!("server.grpc_listen={}", taken.local_addr().unwrap());
    command.args(["--config", "serve.toml", "--set", &grpc]);
    let ended = finish(command);
    if !ended.err.contains("this build is without gRPC") {
        ended.assert_code(1).assert_says(&["cannot listen on", "server.grpc_listen"]);
    }
    assert!(workers(&place).is_empty());
}
