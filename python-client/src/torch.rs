//! torch tensors of tensors, by the cheapest route that the installed torch has.
//!
//! ```text
//!   exchange    C function, no capsule, no Python call        torch 2.14 and later
//!   dlpack      torch.from_dlpack, versioned capsule          where torch takes one
//!   legacy      torch.from_dlpack, the capsule before 1.0     any torch
//!   frombuffer  torch.frombuffer + reshape                    any torch; cannot do zero-size by itself
//! ```
//!
//! What a route can do is found out by trying it once with a tensor of every dtype, at the first use: an element type
//! that DLPack did not carry when that torch was made goes as integers of the same size and is viewed as what it is.

use std::str::FromStr;

use forebay::{DType, TensorMeta};
use pyo3::{
    exceptions::{PyException, PyValueError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::{
    buffer::RawBytes,
    device::Watch,
    dlpack::{self, Form},
    dtype, errors,
    exchange::Exchange,
    memory::{Memory, Owned},
};

/// A way to make a torch tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Exchange,
    Dlpack,
    Legacy,
    FromBuffer,
}

impl Route {
    const ALL: [Self; 4] = [Self::Exchange, Self::Dlpack, Self::Legacy, Self::FromBuffer];

    const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Dlpack => "dlpack",
            Self::Legacy => "legacy",
            Self::FromBuffer => "frombuffer",
        }
    }
}

impl FromStr for Route {
    type Err = PyErr;

    fn from_str(name: &str) -> PyResult<Self> {
        Self::ALL.into_iter().find(|route| route.name() == name).ok_or_else(|| {
            PyValueError::new_err(format!(
                "unknown torch route {name:?}; expected one of exchange, dlpack, legacy, frombuffer"
            ))
        })
    }
}

/// How a dtype travels by one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Itself,
    /// As these integers, viewed as what it is.
    As(DType),
}

type Carriers = [Option<Carrier>; DType::ALL.len()];

/// What the installed torch offers, looked up once.
struct Torch {
    exchange: Option<Exchange>,
    from_dlpack: Py<PyAny>,
    frombuffer: Py<PyAny>,
    empty: Py<PyAny>,
    dtypes: Vec<Option<Py<PyAny>>>,
    carriers: [Carriers; Route::ALL.len()],
    chosen: Route,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

impl Torch {
    fn get(py: Python<'_>) -> PyResult<&Self> {
        TORCH.get_or_try_init(py, || Self::load(py))
    }

    fn load(py: Python<'_>) -> PyResult<Self> {
        let torch = py.import("torch")?;
        let mut found = Self {
            exchange: Exchange::find(&torch.getattr("Tensor")?),
            from_dlpack: torch.getattr("utils")?.getattr("dlpack")?.getattr("from_dlpack")?.unbind(),
            frombuffer: torch.getattr("frombuffer")?.unbind(),
            empty: torch.getattr("empty")?.unbind(),
            dtypes: DType::ALL.iter().map(|dtype| Some(torch.getattr(dtype.name()).ok()?.unbind())).collect(),
            carriers: [[None; DType::ALL.len()]; Route::ALL.len()],
            chosen: Route::FromBuffer,
        };
        for route in Route::ALL {
            for dtype in DType::ALL {
                found.carriers[route as usize][dtype::index(dtype)] = found.try_out(py, route, dtype)?;
            }
        }
        let works = |route: &Route| found.carriers[*route as usize][dtype::index(DType::F32)].is_some();
        let wanted = match std::env::var("FOREBAY_TORCH_ROUTE") {
            Ok(name) if !name.is_empty() => Some(name.parse::<Route>()?),
            _ => None,
        };
        found.chosen = wanted.or_else(|| Route::ALL.into_iter().find(works)).unwrap_or(Route::FromBuffer);
        Ok(found)
    }

    /// Sends two elements of `dtype` along `route` and looks at what comes out.
    fn try_out(&self, py: Python<'_>, route: Route, dtype: DType) -> PyResult<Option<Carrier>> {
        let (Some(integers), Some(own)) = (integers_like(dtype), &self.dtypes[dtype::index(dtype)]) else {
            return Ok(None);
        };
        for carrier in [Carrier::Itself, Carrier::As(integers)] {
            let Some(meta) = TensorMeta::new(dtype, &[2], 0) else { continue };
            let Ok(memory) = Owned::copy_of(&meta, &[0; 32][..2 * dtype.size()]) else { continue };
            let made = self.import(py, memory, route, carrier);
            match made.and_then(|made| made.getattr(intern!(py, "dtype"))) {
                Ok(found) if found.is(own) => return Ok(Some(carrier)),
                // Ctrl-C and the like say nothing of the route: it is tried out at the next use.
                Err(e) if !e.is_instance_of::<PyException>(py) => return Err(e),
                _ => {}
            }
        }
        Ok(None)
    }

    fn dtype<'py>(&self, py: Python<'py>, dtype: DType) -> PyResult<&Bound<'py, PyAny>> {
        match &self.dtypes[dtype::index(dtype)] {
            Some(own) => Ok(own.bind(py)),
            None => Err(errors::torch_dtype_unavailable(py, dtype)),
        }
    }

    fn import<'py>(
        &self,
        py: Python<'py>,
        memory: Memory,
        route: Route,
        carrier: Carrier,
    ) -> PyResult<Bound<'py, PyAny>> {
        let dtype = memory.dtype();
        let sent = match carrier {
            Carrier::Itself => dtype,
            Carrier::As(integers) => integers,
        };
        let made = match route {
            Route::Exchange => match self.exchange {
                Some(exchange) => exchange.import(py, memory, sent)?,
                None => return Err(unavailable(route)),
            },
            Route::Dlpack => {
                self.from_dlpack.bind(py).call1((dlpack::capsule(py, memory, sent, Form::Versioned, false)?,))?
            }
            Route::Legacy => {
                self.from_dlpack.bind(py).call1((dlpack::capsule(py, memory, sent, Form::Legacy, false)?,))?
            }
            Route::FromBuffer => return self.frombuffer(py, memory),
        };
        match carrier {
            Carrier::Itself => Ok(made),
            Carrier::As(_) => made.call_method1(intern!(py, "view"), (self.dtype(py, dtype)?,)),
        }
    }

    fn frombuffer<'py>(&self, py: Python<'py>, memory: Memory) -> PyResult<Bound<'py, PyAny>> {
        let meta = *memory.meta();
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "dtype"), self.dtype(py, meta.dtype)?)?;
        let shape = PyTuple::new(py, meta.shape())?;
        if meta.nbytes == 0 {
            // torch.frombuffer refuses buffers without bytes.
            return self.empty.bind(py).call((shape,), Some(&keywords));
        }
        // What torch keeps by this way is not told of its end: the stream is noted once.
        drop(Watch::of(&memory));
        let flat = self.frombuffer.bind(py).call((Bound::new(py, RawBytes(memory))?,), Some(&keywords))?;
        flat.call_method1(intern!(py, "view"), (shape,))
    }
}

fn unavailable(route: Route) -> PyErr {
    PyValueError::new_err(format!(
        "the installed torch has no route {:?}; leave it out to take the cheapest",
        route.name()
    ))
}

/// Integers of the same size, which any torch takes; `None` where there are none.
const fn integers_like(dtype: DType) -> Option<DType> {
    Some(match dtype.size() {
        1 => DType::U8,
        2 => DType::I16,
        4 => DType::I32,
        8 => DType::I64,
        _ => return if matches!(dtype, DType::C128) { Some(DType::C128) } else { None },
    })
}

impl Torch {
    /// The route that tensors of `dtype` take, and how they travel by it; `None` as the route is the cheapest.
    fn route(&self, py: Python<'_>, dtype: DType, route: Option<Route>) -> PyResult<(Route, Carrier)> {
        let carrier = |route: Route| Some((route, self.carriers[route as usize][dtype::index(dtype)]?));
        match route {
            Some(route) => carrier(route).ok_or_else(|| unavailable(route)),
            None => carrier(self.chosen)
                .or_else(|| Route::ALL.into_iter().find_map(carrier))
                .ok_or_else(|| errors::torch_dtype_unavailable(py, dtype)),
        }
    }
}

/// Imports torch, and finds a way for these element types.
pub(crate) fn prepare(py: Python<'_>, dtypes: &[DType]) -> PyResult<()> {
    let torch = Torch::get(py)?;
    dtypes.iter().try_for_each(|&dtype| torch.route(py, dtype, None).map(drop))
}

/// A torch tensor of `memory`; `None` as the route takes the cheapest.
pub(crate) fn of<'py>(py: Python<'py>, memory: Memory, route: Option<Route>) -> PyResult<Bound<'py, PyAny>> {
    if let Some(refusal) = memory.refusal() {
        return Err(errors::refusal(py, refusal));
    }
    let torch = Torch::get(py)?;
    let (route, carrier) = torch.route(py, memory.dtype(), route)?;
    torch.import(py, memory, route, carrier)
}

/// torch's name for a device.
pub(crate) fn device<'py>(py: Python<'py>, place: (&str, i32)) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "torch"))?.getattr(intern!(py, "device"))?.call1(place)
}

/// A torch tensor like `meta` on a device, its elements whatever lies there.
pub(crate) fn empty_on<'py>(py: Python<'py>, meta: &TensorMeta, place: (&str, i32)) -> PyResult<Bound<'py, PyAny>> {
    let torch = Torch::get(py)?;
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "dtype"), torch.dtype(py, meta.dtype)?)?;
    keywords.set_item(intern!(py, "device"), device(py, place)?)?;
    torch.empty.bind(py).call((PyTuple::new(py, meta.shape())?,), Some(&keywords))
}

/// The routes by which the installed torch can be given tensors, cheapest first, and the one that is taken.
#[pyfunction]
pub(crate) fn torch_routes(py: Python<'_>) -> PyResult<(Vec<&'static str>, &'static str)> {
    let torch = Torch::get(py)?;
    let works = |route: &Route| torch.carriers[*route as usize][dtype::index(DType::F32)].is_some();
    let routes = Route::ALL.into_iter().filter(works).map(Route::name).collect();
    Ok((routes, torch.chosen.name()))
}
