//! Whether an answer fits into its slot, as far as the configuration tells: what never can is better said at the start
//! than at the first request. What does not fit together comes in parts, so one item is what counts.

use crate::{backend::TensorInfo, config::Config, intake::IntakeError};

/// Holds the outputs of one item against the slot that they go into. Those whose dims vary are left out, and so are
/// generating models, which answer step by step.
pub(super) fn check(config: &Config, outputs: &[TensorInfo]) -> Result<(), IntakeError> {
    if config.model.generate {
        return Ok(());
    }
    let needed = outputs.iter().filter_map(row_bytes).fold(0, u64::saturating_add);
    let room = config.worker.answer_slot_bytes;
    if needed > room {
        let what = format!("{room} bytes, the outputs of one item need {needed}");
        return Err(IntakeError { key: "worker.answer_slot_bytes".to_owned(), what });
    }
    Ok(())
}

/// Bytes of one item's row, in whole cache lines as fields of a slot are; `None` where dims vary.
fn row_bytes(tensor: &TensorInfo) -> Option<u64> {
    let elements = tensor.shape.iter().try_fold(1u64, |all, dim| Some(all.saturating_mul((*dim)?)))?;
    let bytes = elements.saturating_mul(tensor.dtype.size() as u64);
    Some(bytes.checked_next_multiple_of(forebay::ALIGN).unwrap_or(u64::MAX))
}
