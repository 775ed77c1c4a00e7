//! Receives what a Python process computed, as `ndarray` views of the slot it was written to.

use std::{error::Error, time::Duration};

use forebay::{Consumer, DType, Schema};

fn main() -> Result<(), Box<dyn Error>> {
    let ring = std::env::args().nth(1).unwrap_or_else(|| "scores".to_owned());
    let expected = Schema::builder("scores", 1, 0)
        .field("embedding", DType::F32, &[4, 256])
        .field("label", DType::I64, &[4])
        .build()?;
    // A ring with other fields is refused here, with a diff.
    let mut consumer = Consumer::options(&ring).schema(expected).timeout(Some(Duration::from_secs(30))).attach()?;
    let mut received = 0u64;
    for message in &mut consumer {
        let message = message?;
        let step = message.correlation_id();
        let embedding = message.tensor("embedding")?;
        let view = embedding.view::<f32>()?;
        let rows = view.shape()[0];
        let wrong =
            view.iter().enumerate().find(|&(i, &x)| x != if step < 100 { (i as u64 * step) as f32 } else { 0.0 });
        if let Some((i, x)) = wrong {
            return Err(format!("message {step}: element {i} of {rows} rows is {x}").into());
        }
        let labels = message.tensor("label")?;
        if labels.as_slice::<i64>()?.iter().any(|&label| label != step as i64) {
            return Err(format!("message {step} carries other labels").into());
        }
        if step != received {
            return Err(format!("message {received} was expected, {step} came").into());
        }
        received += 1;
    }
    if received != 101 {
        return Err(format!("{received} of 101 messages came").into());
    }
    #[expect(clippy::print_stdout, reason = "this is what the program is for")]
    {
        println!("received all {received} messages");
    }
    Ok(())
}
