//! Whether answers fit into their slots, as far as the configuration tells: what never can is better said at the start
//! than at the first full batch.

use crate::{
    backend::TensorInfo,
    config::Config,
    intake::{Intake, IntakeError},
};

/// Holds the outputs of the largest batch against the slots that they go into. Those whose dims vary are left out, and so
/// are generating models, which answer step by step.
pub(super) fn check(config: &Config, intake: &Intake, outputs: &[TensorInfo]) -> Result<(), IntakeError> {
    if config.model.generate {
        return Ok(());
    }
    let items = most_items(config, intake);
    let fixed = outputs.iter().filter(|output| output.shape.iter().all(Option::is_some));
    let needed = fixed.map(|output| round_up(row_bytes(output).saturating_mul(items))).fold(0, u64::saturating_add);
    let room = config.worker.answer_slot_bytes;
    if needed > round_up(room) {
        let what = format!(
            "{room} bytes, the outputs of a batch of {items} items need {needed}; raise it, or lower batch.max_items"
        );
        return Err(IntakeError { key: "worker.answer_slot_bytes".to_owned(), what });
    }
    Ok(())
}

/// Items of the batch that has most of them: of the smallest ones that there can be.
fn most_items(config: &Config, intake: &Intake) -> u64 {
    let parameters: u64 = intake.parameters().iter().map(|parameter| parameter.dtype.size() as u64).sum();
    let smallest = intake.tensors().iter().map(row_bytes).fold(parameters, u64::saturating_add);
    let by_bytes = intake.max_bytes() / smallest.max(1);
    let by_tokens = match intake.token_bytes() {
        0 => u64::MAX,
        _ => config.batch.max_tokens as u64 / intake.pad_to_multiple_of().max(1) as u64,
    };
    (config.batch.max_items as u64).min(by_bytes).min(by_tokens).max(1)
}

/// Bytes of one item's row; of dims that vary, the smallest.
fn row_bytes(tensor: &TensorInfo) -> u64 {
    let elements = tensor.shape.iter().map(|dim| dim.unwrap_or(1)).fold(1, u64::saturating_mul);
    elements.saturating_mul(tensor.dtype.size() as u64)
}

/// As fields of a slot are.
fn round_up(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(forebay::ALIGN).unwrap_or(u64::MAX)
}
