//! W3C traceparent texts: `00-<trace id>-<span id>-<flags>`, in lower-case hexadecimal.

use forebay::service::Trace;
use pyo3::PyResult;

use super::value_error;

/// Writes one.
pub(super) fn show(trace: &Trace) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-{:02x}", hex(&trace.trace_id), hex(&trace.span_id), trace.flags)
}

/// Reads one.
pub(super) fn read(text: &str) -> PyResult<Trace> {
    let parse = || {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || version == "00" && parts.next().is_some() {
            return None;
        }
        let mut found = Trace::default();
        fill(&mut found.trace_id, trace)?;
        fill(&mut found.span_id, span)?;
        let mut byte = [0];
        fill(&mut byte, flags)?;
        found.flags = byte[0];
        (found.trace_id != [0; 16] && found.span_id != [0; 8]).then_some(found)
    };
    parse().ok_or_else(|| {
        value_error(format!(
            "trace is {text:?}, expected a traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>"
        ))
    })
}

fn fill(to: &mut [u8], hex: &str) -> Option<()> {
    if hex.len() != 2 * to.len() || !hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, digits) in to.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(())
}
