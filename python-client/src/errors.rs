//! The one place where Rust's errors become Python's. The classes are in `python/forebay/_errors.py`.

use std::time::Duration;

use forebay::{
    AttachError, CreateError, DType, HeldLease, LoanError, OsError, PublishError, RecvError, SchemaError, TensorError,
    WaitError, cuda::CudaError, service::ServiceError,
};
use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyDict, PyList},
};

use crate::memory::Refusal;

/// An error of class `forebay.<class>`, with attributes.
fn make(py: Python<'_>, class: &str, text: String, fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>) -> PyErr {
    let made = || -> PyResult<PyErr> {
        let attributes = PyDict::new(py);
        fill(&attributes)?;
        let error = py.import("forebay._errors")?.getattr(class)?.call1((&text,))?;
        for (name, value) in attributes.iter() {
            error.setattr(name.str()?, value)?;
        }
        Ok(PyErr::from_value(error))
    };
    made().unwrap_or_else(|cause| {
        let class = py.get_type::<PyRuntimeError>();
        let error = class.call1((&text,)).map_or_else(|e| e, PyErr::from_value);
        // While the interpreter is being finalized nothing can be imported, and setting a cause would panic.
        if py.detach(|| Python::try_attach(|_| ()).is_some()) {
            error.set_cause(py, Some(cause));
        }
        error
    })
}

fn plain(py: Python<'_>, class: &str, text: impl ToString) -> PyErr {
    make(py, class, text.to_string(), |_| Ok(()))
}

fn ring_only(py: Python<'_>, class: &str, text: String, ring: &str) -> PyErr {
    make(py, class, text, |a| a.set_item("ring", ring))
}

fn waiting(py: Python<'_>, class: &str, text: String, ring: &str, waited: Duration) -> PyErr {
    make(py, class, text, |a| {
        a.set_item("ring", ring)?;
        a.set_item("waited_s", waited.as_secs_f64())
    })
}

/// The system refused a call.
pub(crate) fn os(py: Python<'_>, e: &OsError) -> PyErr {
    make(py, "SystemCallError", e.to_string(), |a| a.set_item("errno", e.raw_os_error()))
}

fn leases<'py>(py: Python<'py>, held: &[HeldLease]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for &lease in held {
        list.append(Bound::new(py, crate::consumer::HeldLease::from(lease))?)?;
    }
    Ok(list)
}

/// A producer could not be made.
pub(crate) fn create(py: Python<'_>, e: CreateError) -> PyErr {
    let text = e.to_string();
    match e {
        CreateError::Taken { ring, holder } => make(py, "RingTaken", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("holder", holder)
        }),
        CreateError::Memory { ring, needed, free, place } => make(py, "InsufficientMemory", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("needed_bytes", needed)?;
            a.set_item("free_bytes", free)?;
            a.set_item("place", place)
        }),
        CreateError::Different { ring, difference, outstanding } => make(py, "RingDiffers", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("difference", difference)?;
            a.set_item("outstanding", outstanding)
        }),
        CreateError::Damaged { ring, source, outstanding } => make(py, "RingDiffers", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("difference", source.to_string())?;
            a.set_item("outstanding", outstanding)
        }),
        CreateError::Name { ring, .. } | CreateError::Geometry { ring, .. } | CreateError::Options { ring, .. } => {
            ring_only(py, "InvalidOptions", text, &ring)
        }
        CreateError::Os(e) => os(py, &e),
        _ => plain(py, "CreateError", text),
    }
}

/// A consumer could not attach.
pub(crate) fn attach(py: Python<'_>, e: AttachError) -> PyErr {
    let text = e.to_string();
    match e {
        AttachError::Name { ring, .. } => ring_only(py, "InvalidOptions", text, &ring),
        AttachError::NotThere { ring, waited, path, .. } => make(py, "RingNotFound", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("waited_s", waited.as_secs_f64())?;
            a.set_item("path", path)
        }),
        AttachError::Silent { ring, waited } => waiting(py, "PeerSilent", text, &ring, waited),
        AttachError::Refused { ring, reason } => make(py, "AttachRefused", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("reason", reason)
        }),
        AttachError::Schema { ring, diff } => make(py, "SchemaMismatch", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("diff", diff)
        }),
        AttachError::Defect { ring, .. } => ring_only(py, "IncompatibleRing", text, &ring),
        AttachError::NotWritable { ring } => ring_only(py, "NotWritable", text, &ring),
        AttachError::Os(e) => os(py, &e),
        _ => plain(py, "AttachError", text),
    }
}

/// No message was received.
pub(crate) fn recv(py: Python<'_>, e: RecvError) -> PyErr {
    let text = e.to_string();
    match e {
        RecvError::Timeout { ring, waited, .. } => waiting(py, "ReceiveTimeout", text, &ring, waited),
        RecvError::Closed { ring } => ring_only(py, "RingClosed", text, &ring),
        RecvError::PeerDied { ring, .. } => ring_only(py, "PeerDied", text, &ring),
        RecvError::Replaced { ring } => ring_only(py, "RingReplaced", text, &ring),
        RecvError::Quota { ring, quota, held } => make(py, "QuotaExceeded", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("quota", quota)?;
            a.set_item("held", leases(py, &held)?)
        }),
        RecvError::Poisoned { ring, source } => make(py, "RingPoisoned", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("field", source.field)?;
            a.set_item("found", source.found)
        }),
        RecvError::Detached { ring } => ring_only(py, "HandleClosed", text, &ring),
        RecvError::Forked { ring } => ring_only(py, "ForkedError", text, &ring),
        RecvError::Os(e) => os(py, &e),
        _ => plain(py, "ReceiveError", text),
    }
}

/// Whether an error of receiving is only the end of the ring.
pub(crate) fn is_end(py: Python<'_>, e: &PyErr) -> PyResult<bool> {
    Ok(e.is_instance(py, &py.import("forebay._errors")?.getattr("RingClosed")?))
}

/// There is no loan.
pub(crate) fn loan(py: Python<'_>, e: LoanError) -> PyErr {
    let text = e.to_string();
    match e {
        LoanError::TooLarge { ring, needed, largest } => make(py, "MessageTooLarge", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("needed_bytes", needed)?;
            a.set_item("largest_bytes", largest)
        }),
        LoanError::Fields { ring, .. } => ring_only(py, "FieldsMismatch", text, &ring),
        LoanError::Full { ring, waited, slots, full, loaned, .. } => make(py, "RingFull", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("waited_s", waited.as_secs_f64())?;
            a.set_item("slots", slots)?;
            a.set_item("unclaimed", full)?;
            a.set_item("loaned", loaned)
        }),
        LoanError::OwnLoans { ring, loaned } => make(py, "OwnLoansOutstanding", text, |a| {
            a.set_item("ring", ring)?;
            a.set_item("loaned", loaned)
        }),
        LoanError::Closed { ring } => ring_only(py, "HandleClosed", text, &ring),
        LoanError::Forked { ring } => ring_only(py, "ForkedError", text, &ring),
        LoanError::Os(e) => os(py, &e),
        _ => plain(py, "LoanError", text),
    }
}

/// A loan could not be published.
pub(crate) fn publish(py: Python<'_>, e: PublishError) -> PyErr {
    let class = match e {
        PublishError::Closed => "HandleClosed",
        PublishError::Forked => "ForkedError",
        PublishError::ItemTaken { .. } => "FieldsMismatch",
        _ => "PublishError",
    };
    plain(py, class, e)
}

/// A service cannot go on, or not with this call.
pub(crate) fn service(py: Python<'_>, e: ServiceError) -> PyErr {
    let text = e.to_string();
    let ended = |class: &str, service: &str, outstanding: usize| {
        make(py, class, text.clone(), |a| {
            a.set_item("ring", service)?;
            a.set_item("service", service)?;
            a.set_item("outstanding", outstanding)
        })
    };
    match e {
        ServiceError::PeerDied { service, outstanding, .. } => ended("PeerDied", &service, outstanding),
        ServiceError::Closed { service, outstanding } => ended("ServiceClosed", &service, outstanding),
        ServiceError::Version { service, .. } => ring_only(py, "IncompatibleRing", text, &service),
        ServiceError::Defect { service, source } => make(py, "RingPoisoned", text, |a| {
            a.set_item("ring", service)?;
            a.set_item("field", source.field)?;
            a.set_item("found", source.found)
        }),
        ServiceError::Rows { .. } => plain(py, "FieldsMismatch", text),
        ServiceError::AnswerTooLarge { service, needed, room } => make(py, "MessageTooLarge", text, |a| {
            a.set_item("ring", service)?;
            a.set_item("needed_bytes", needed)?;
            a.set_item("largest_bytes", room)
        }),
        ServiceError::NoSuchRank { service, .. } => ring_only(py, "InvalidOptions", text, &service),
        ServiceError::Create(e) => create(py, e),
        ServiceError::Attach(e) => attach(py, e),
        ServiceError::Loan(e) => loan(py, e),
        ServiceError::Publish(e) => publish(py, e),
        ServiceError::Recv(e) => recv(py, e),
        ServiceError::NotAccepted { service }
        | ServiceError::Answered { service, .. }
        | ServiceError::NoSuchItem { service, .. }
        | ServiceError::NotRankZero { service, .. }
        | ServiceError::Interrupted { service } => make(py, "ServiceError", text, |a| a.set_item("service", service)),
        _ => plain(py, "ServiceError", text),
    }
}

/// Something was not reached in time.
pub(crate) fn wait(py: Python<'_>, e: WaitError) -> PyErr {
    let text = e.to_string();
    match e {
        WaitError::Timeout { waited, .. } => {
            make(py, "WaitTimeout", text, |a| a.set_item("waited_s", waited.as_secs_f64()))
        }
        WaitError::Forked => plain(py, "ForkedError", text),
        WaitError::Os(e) => os(py, &e),
        _ => plain(py, "ForebayError", text),
    }
}

/// A tensor cannot be had.
pub(crate) fn tensor(py: Python<'_>, e: TensorError) -> PyErr {
    let class = if matches!(e, TensorError::NoField { .. }) { "NoSuchField" } else { "ForebayError" };
    plain(py, class, e)
}

/// A GPU cannot do what it was asked for.
pub(crate) fn device(py: Python<'_>, e: &CudaError) -> PyErr {
    let class = match e {
        CudaError::Forked { .. } => "ForkedError",
        CudaError::NoTensor { .. } => "NoSuchField",
        _ => "DeviceError",
    };
    make(py, class, e.to_string(), |a| a.set_item("code", e.code()))
}

/// A schema that cannot be.
pub(crate) fn schema(py: Python<'_>, e: SchemaError) -> PyErr {
    plain(py, "SchemaError", e)
}

/// No array may be made of a tensor.
pub(crate) fn refusal(py: Python<'_>, refusal: Refusal) -> PyErr {
    match refusal {
        Refusal::Forked => plain(
            py,
            "ForkedError",
            "this tensor belongs to the parent process, its memory is not mapped here; attach after the fork",
        ),
        Refusal::LoanEnded => plain(
            py,
            "LoanEnded",
            "this tensor's loan was published or given back, its slot is no longer ours to write; make another loan",
        ),
    }
}

/// `closed` for a handle that was closed in Python.
pub(crate) fn closed(py: Python<'_>, what: &str, ring: &str) -> PyErr {
    ring_only(py, "HandleClosed", format!("this {what} of {ring:?} is closed; create another one"), ring)
}

/// A handle of the parent process, used in a forked child.
pub(crate) fn forked(py: Python<'_>, what: &str, ring: &str) -> PyErr {
    let text = format!(
        "this {what} of {ring:?} belongs to the parent process; make one after the fork (copy.copy() of it attaches anew)"
    );
    ring_only(py, "ForkedError", text, ring)
}

/// A loan that was published or given back.
pub(crate) fn loan_ended(py: Python<'_>) -> PyErr {
    refusal(py, Refusal::LoanEnded)
}

/// NumPy lacks an element type.
pub(crate) fn dtype_unavailable(py: Python<'_>, dtype: DType, cause: PyErr) -> PyErr {
    let text = format!("NumPy has no {dtype}; install the package ml_dtypes, or use .torch()");
    let error = plain(py, "DTypeUnavailable", text);
    error.set_cause(py, Some(cause));
    error
}

/// torch lacks an element type.
pub(crate) fn torch_dtype_unavailable(py: Python<'_>, dtype: DType) -> PyErr {
    plain(py, "DTypeUnavailable", format!("the installed torch has no {dtype}; install a newer one, or use .numpy()"))
}
