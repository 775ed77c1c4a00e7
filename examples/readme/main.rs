//! Publishes ten tensors for whoever attaches.

use forebay::{DType, FieldSpec, Producer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut producer = Producer::create("tokens")?;
    for step in 0..10 {
        let mut loan = producer.loan(&[FieldSpec::new("input_ids", DType::I64, &[2, 4])])?;
        loan.tensor_mut::<i64>("input_ids")?.fill(step); // written where Python reads it
        loan.publish()?;
    }
    Ok(producer.drain(None)?) // until all of it was received
}
