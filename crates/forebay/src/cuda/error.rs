//! What the CUDA runtime refused, or why there is none to ask.

use forebay_os::OsError;

/// Why a device cannot do what it was asked for. Nothing else suffers: messages are received and read as before, and
/// copied by whoever copies them.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// This process has no CUDA runtime. Trying again after torch, CuPy or JAX was imported helps.
    #[error(
        "no CUDA runtime in this process: {found}; import torch, CuPy or JAX (a build with CUDA) before, or name the \
         library in FOREBAY_CUDART"
    )]
    NotLoaded {
        /// What was looked at.
        found: String,
    },
    /// The runtime is one that this cannot work with: too old, or something else under its name.
    #[error("{path} has no function {name:?}, expected the CUDA runtime, version 11 or later; update it")]
    MissingFunction {
        /// The library.
        path: String,
        /// What it lacks.
        name: String,
    },
    /// A function of the runtime failed.
    #[error("{call} failed with CUDA error {code}: {text}{}", hint(*.code))]
    Call {
        /// The function.
        call: &'static str,
        /// Its `cudaError_t`.
        code: i32,
        /// What the runtime says of that code.
        text: String,
    },
    /// This device cannot pin memory that is mapped read-only.
    #[error(
        "device {device} cannot register memory that is mapped read-only (cudaDevAttrHostRegisterReadOnlySupported is \
         0); create ring {ring:?} with writable and attach with writable, which a queue allows"
    )]
    ReadOnlyMap {
        /// The ring.
        ring: String,
        /// The device.
        device: i32,
    },
    /// The stream records a graph. A copy out of a slot cannot be part of one: the slot holds other bytes at each replay.
    #[error(
        "the stream is capturing a graph, and a slot's bytes are not there any more when it is replayed; copy into fixed \
         buffers before the replay (DevicePrefetcher does), and capture what reads those"
    )]
    Capturing,
    /// A forked child has no device of its parent's.
    #[error("this is a forked child of the process that attached to ring {ring:?}; attach in the child")]
    Forked {
        /// The ring.
        ring: String,
    },
    /// There is no tensor of this index.
    #[error("message has no tensor {index}, it has {len}; ask for one of those")]
    NoTensor {
        /// What was asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// The system refused something else.
    #[error("{text}")]
    Os {
        /// What, on what, why.
        text: String,
    },
}

impl From<OsError> for CudaError {
    fn from(e: OsError) -> Self {
        Self::Os { text: e.to_string() }
    }
}

impl CudaError {
    /// The runtime's code, if it gave one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// What to do about a code.
fn hint(code: i32) -> &'static str {
    match code {
        2 => "; free device memory, or use a smaller ring",
        35 => "; there is no NVIDIA driver here, or it is older than the runtime: update it",
        3 => "; a forked child cannot use its parent's CUDA: start workers with spawn",
        100 => "; no device is visible, see CUDA_VISIBLE_DEVICES",
        101 => "; there is no device of that number",
        801 => "; this device cannot register such memory: attach without pinning",
        _ => "",
    }
}
