//! A tokio application that batches what its tasks ask for and hands each batch to a Python model.
//!
//! Many tasks send short integer sequences; one task collects up to `BATCH` of them (or what came within 2 ms), pads
//! them in place into a loan, and publishes. Nothing here blocks the runtime: the wait for a slot runs on a blocking
//! thread, everything else is a store.

use std::{error::Error, time::Duration};

use forebay::{DType, FieldSpec, LoanError, Producer, Schema};
use tokio::{sync::mpsc, task, time};

const BATCH: usize = 8;
const MAX_LENGTH: usize = 16;
const REQUESTS: i64 = 200;

struct Request {
    id: i64,
    ids: Vec<i64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let ring = std::env::args().nth(1).unwrap_or_else(|| "requests".to_owned());
    let schema = Schema::builder("requests", 1, 0)
        .field("request", DType::I64, &[BATCH as u64])
        .field("input_ids", DType::I64, &[BATCH as u64, MAX_LENGTH as u64])
        .build()?;
    let producer = Producer::options(&ring).schema(schema).slots(8).create()?;

    let (sender, receiver) = mpsc::channel(64);
    for client in 0..4 {
        let sender = sender.clone();
        task::spawn(async move {
            for id in (client..REQUESTS).step_by(4) {
                let ids = (0..1 + id % MAX_LENGTH as i64).map(|i| id * 100 + i).collect();
                if sender.send(Request { id, ids }).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    batcher(producer, receiver).await
}

async fn batcher(mut producer: Producer, mut requests: mpsc::Receiver<Request>) -> Result<(), Box<dyn Error>> {
    while let Some(first) = requests.recv().await {
        let mut batch = vec![first];
        let window = time::sleep(Duration::from_millis(2));
        tokio::pin!(window);
        while batch.len() < BATCH {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => batch.push(request),
                    None => break,
                },
                () = &mut window => break,
            }
        }
        // A slot is nearly always free; when none is, waiting for one must not hold up the runtime.
        producer = task::spawn_blocking(move || publish(&mut producer, &batch).map(|()| producer)).await??;
    }
    task::spawn_blocking(move || producer.drain(Some(Duration::from_secs(30)))).await??;
    Ok(())
}

fn publish(producer: &mut Producer, batch: &[Request]) -> Result<(), LoanError> {
    let rows = batch.len();
    let width = batch.iter().map(|request| request.ids.len()).max().unwrap_or(0);
    let mut loan = producer.loan(&[
        FieldSpec::new("request", DType::I64, &[rows as u64]),
        FieldSpec::new("input_ids", DType::I64, &[rows as u64, width as u64]),
    ])?;
    // The fields are those of the schema above, and a loan that was just made is not in a forked child.
    let (names, ids) = loan.tensors_mut::<i64, i64>("request", "input_ids").expect("the schema's fields");
    ids.fill(0);
    for (row, request) in batch.iter().enumerate() {
        names[row] = request.id;
        ids[row * width..][..request.ids.len()].copy_from_slice(&request.ids);
    }
    loan.publish().expect("this process created the producer");
    Ok(())
}
