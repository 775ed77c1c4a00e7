//! The worker that the tests' engines start.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use forebay::{
    DType, FieldSpec,
    service::{ItemStatus, PartItem, Request, Server, Timings, now_ns},
};

use crate::place::PATIENCE;

// What the first element of an item tells the worker to do.
pub(crate) const KILL_ITSELF: f32 = -1.0;
pub(crate) const HANG: f32 = -2.0;
pub(crate) const WRONG_SHAPE: f32 = -3.0;
pub(crate) const FAIL_ITEM: f32 = -4.0;
pub(crate) const FAIL_BATCH: f32 = -5.0;
pub(crate) const EXIT: f32 = -6.0;
pub(crate) const UNTIL_CANCELLED: f32 = -7.0;
pub(crate) const KILL_ITSELF_ONCE: f32 = -8.0;
pub(crate) const UNTIL_FILE: f32 = -9.0;

/// What this binary does when it is started as a worker; returns at once if it was not.
pub(crate) fn work() {
    let (Ok(service), Ok(mode)) = (std::env::var("FOREBAY_SERVICE"), std::env::var("WORKER_MODE")) else { return };
    let marks = PathBuf::from(std::env::var("WORKER_MARKS").unwrap());
    let rank: u32 = std::env::var("FOREBAY_RANK").unwrap().parse().unwrap();
    match mode.as_str() {
        "crash" => std::process::exit(9),
        "mute" => std::thread::sleep(PATIENCE),
        _ => {}
    }
    if mode == "crash-later" && marks.join("crash").exists() {
        eprintln!("ImportError: no module named model");
        std::process::exit(9);
    }
    if matches!(&mode[..], "late" | "linger") && marks.join("started").exists() {
        while !marks.join("start").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fs::write(marks.join("started"), "").unwrap();
    let mut server = Server::options(&service).rank(rank).answer_slot_bytes(1 << 16).answer_slots(16).attach().unwrap();
    server.ready(&mode).unwrap();
    if mode == "linger" {
        linger(server, &marks);
        return;
    }
    let result = if mode == "generate" { generate(&mut server, &marks) } else { run(&mut server, &mode, &marks, rank) };
    let code = match result {
        Ok(()) | Err(forebay::service::Error::Closed { .. }) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    std::process::exit(code);
}

/// Answers nothing; once it is told to, ends its rings and stays.
fn linger(mut server: Server, marks: &Path) {
    while fs::remove_file(marks.join("leave")).is_err() {
        match server.try_recv() {
            Ok(Some(_)) => fs::write(marks.join("waiting"), "").unwrap(),
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => std::process::exit(0),
        }
    }
    drop(server);
    std::thread::sleep(4 * PATIENCE);
}

fn run(server: &mut Server, mode: &str, marks: &Path, rank: u32) -> Result<(), forebay::service::Error> {
    let mut kept = Vec::new();
    loop {
        let request = server.recv()?;
        if mode == "texts" {
            count_tokens(server, &request)?;
            continue;
        }
        let x: Vec<f32> = request.message().as_slice::<f32>("x").unwrap().to_vec();
        let firsts: Vec<f32> = x.chunks(2).map(|row| row[0]).collect();
        if let Some(ms) = mode.strip_prefix("slow-") {
            std::thread::sleep(Duration::from_millis(ms.parse().unwrap()));
        }
        if rank != 0 {
            fs::write(marks.join(format!("rank-{rank}-saw-{}", firsts[0])), "").unwrap();
            server.finish(&request);
            continue;
        }
        answer(server, &request, &firsts, marks)?;
        if mode == "leak" {
            kept.push(request);
        }
    }
}

/// The number of tokens of each text, and the width of the batch that it was in.
fn count_tokens(server: &mut Server, request: &Request) -> Result<(), forebay::service::Error> {
    let message = request.message();
    let n = request.items().len();
    let mask = message.as_slice::<i64>("attention_mask").unwrap();
    let ids = message.as_slice::<i64>("input_ids").unwrap();
    let width = mask.len() / n;
    let count = |row: &[i64]| row.iter().sum::<i64>() as f32;
    let mut loan = server.answer(request, &[FieldSpec::new("y", DType::F32, &[n as u64, 2])])?;
    for (row, y) in loan.tensor_mut::<f32>("y").unwrap().chunks_mut(2).enumerate() {
        let row = row * width..(row + 1) * width;
        // Padding is where there is no token, and nowhere else.
        let padded = ids[row.clone()].iter().zip(&mask[row.clone()]).all(|(id, kept)| (*id != 0) == (*kept == 1));
        y.copy_from_slice(&[if padded { count(&mask[row]) } else { -1.0 }, (width * n) as f32]);
    }
    Ok(loan.publish()?)
}

fn answer(server: &mut Server, request: &Request, firsts: &[f32], marks: &Path) -> Result<(), forebay::service::Error> {
    let n = firsts.len() as u64;
    let has = |what: f32| firsts.contains(&what);
    if let Some(trace) = request.trace() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mark = format!("trace-{}-{}-{}", hex(&trace.trace_id), hex(&trace.span_id), trace.flags);
        fs::write(marks.join(mark), "").unwrap();
    }
    if has(KILL_ITSELF) || has(KILL_ITSELF_ONCE) && !marks.join("died").exists() {
        fs::write(marks.join("died"), "").unwrap();
        let _ = std::process::Command::new("kill").arg("-9").arg(std::process::id().to_string()).status();
    }
    if has(HANG) {
        std::thread::sleep(PATIENCE);
    }
    if has(EXIT) {
        std::process::exit(3);
    }
    if has(FAIL_BATCH) {
        return server.fail(request, "ValueError", "not today");
    }
    if has(UNTIL_FILE) {
        fs::write(marks.join("waiting"), "").unwrap();
        while !marks.join("go").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    if let Some(at) = firsts.iter().position(|x| *x == UNTIL_CANCELLED) {
        fs::write(marks.join("waiting"), "").unwrap();
        while !request.cancelled(at) {
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::write(marks.join("cancelled"), "").unwrap();
    }
    let start_ns = now_ns();
    let columns = if has(WRONG_SHAPE) { 3 } else { 2 };
    let mut loan = server.answer(request, &[FieldSpec::new("y", DType::F32, &[n, columns])])?;
    for (row, first) in loan.tensor_mut::<f32>("y").unwrap().chunks_mut(columns as usize).zip(firsts) {
        row.fill(2.0 * first);
    }
    for (row, first) in firsts.iter().enumerate() {
        if *first == FAIL_ITEM {
            loan.set_status(row, ItemStatus::Error, "ValueError: a bad item");
        }
    }
    loan.set_timings(Timings { start_ns, end_ns: now_ns() });
    Ok(loan.publish()?)
}

/// Each item counts down from its first element, a token a step.
fn generate(server: &mut Server, marks: &Path) -> Result<(), forebay::service::Error> {
    let mut open: HashMap<u64, (Arc<Request>, usize, i64)> = HashMap::new();
    loop {
        let request = if open.is_empty() { Some(server.recv()?) } else { server.try_recv()? };
        if let Some(request) = request {
            let x: Vec<f32> = request.message().as_slice::<f32>("x").unwrap().to_vec();
            if x.contains(&FAIL_BATCH) {
                server.fail(&request, "ValueError", "not today")?;
                continue;
            }
            let request = Arc::new(request);
            for (at, item) in request.items().iter().enumerate() {
                open.insert(item.id, (Arc::clone(&request), at, x[2 * at] as i64));
            }
        }
        let mut items = Vec::new();
        let mut tokens = Vec::new();
        for (&id, (request, at, left)) in &mut open {
            if request.cancelled(*at) {
                fs::write(marks.join("cancelled"), "").unwrap();
                *left = 0;
            }
            tokens.push(*left);
            items.push(PartItem { id, last: *left <= 0 });
            *left -= 1;
        }
        open.retain(|_, (_, _, left)| *left >= 0);
        std::thread::sleep(Duration::from_millis(1));
        let mut loan = server.part(&items, &[FieldSpec::new("tokens", DType::I64, &[items.len() as u64])])?;
        loan.tensor_mut::<i64>("tokens").unwrap().copy_from_slice(&tokens);
        loan.publish()?;
    }
}
