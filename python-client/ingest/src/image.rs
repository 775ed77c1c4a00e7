//! Image processors. Arrays are made, and results given their shape, in `_images.py`.

use std::path::PathBuf;
use std::sync::Arc;

use forebay_ingest::image::{
    ChannelOrder, Damage, Dtype, ImageBatchError, ImageBatchPlan, ImageConfigError, ImageFailure, ImageLimits,
    ImageOptions, ImageProcessor, Recipe, Transparency,
};
use pyo3::{
    exceptions::{PyFileNotFoundError, PyOSError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::PyBytes,
};

use crate::array::Array;
use crate::errors::value_error;
use crate::work::released;

/// Turns images into tensors, as a `preprocessor_config.json` says.
#[pyclass(name = "ImageProcessor", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyImageProcessor {
    inner: Arc<ImageProcessor>,
}

/// Images whose batch has a size.
#[pyclass(name = "ImageBatch", module = "forebay_ingest", frozen)]
pub(crate) struct PyImageBatch {
    processor: Arc<ImageProcessor>,
    items: Vec<PyBackedBytes>,
    /// Which of them are no bytes, and why; they are empty, which no image is.
    absent: Vec<(usize, String)>,
    plan: ImageBatchPlan,
}

fn config_error(error: ImageConfigError) -> PyErr {
    let text = error.to_string();
    match error {
        ImageConfigError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(text)
        }
        ImageConfigError::Unreadable { .. } => PyOSError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// One of the names of an option.
fn choice<T: Copy>(option: &str, found: &str, choices: &[(&str, T)]) -> PyResult<T> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == found) {
        return Ok(*value);
    }
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
    Err(PyValueError::new_err(format!("{option} is {found:?}, expected {}; change the option", names.join(" or "))))
}

#[pymethods]
impl PyImageProcessor {
    /// A processor of a configuration, given as its text or as the path of a file or folder.
    #[staticmethod]
    #[pyo3(signature = (
        config, path, *, dtype, layout, resampling, transparency, damaged, upright, max_bytes, max_pixels, max_side,
        max_batch_bytes
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn from_config(
        py: Python<'_>,
        config: Option<&str>,
        path: Option<PathBuf>,
        dtype: &str,
        layout: &str,
        resampling: &str,
        transparency: &str,
        damaged: &str,
        upright: bool,
        max_bytes: Option<usize>,
        max_pixels: Option<u64>,
        max_side: Option<u32>,
        max_batch_bytes: Option<usize>,
    ) -> PyResult<Self> {
        let mut options = ImageOptions::default();
        let dtypes =
            [("uint8", Dtype::U8), ("float16", Dtype::F16), ("bfloat16", Dtype::Bf16), ("float32", Dtype::F32)];
        options.dtype = choice("dtype", dtype, &dtypes)?;
        options.order = choice(
            "layout",
            layout,
            &[("channels_first", ChannelOrder::First), ("channels_last", ChannelOrder::Last)],
        )?;
        options.resampling = resampling.parse().map_err(PyValueError::new_err)?;
        let transparencies = [("white", Transparency::OverWhite), ("drop", Transparency::Drop)];
        options.transparency = choice("transparency", transparency, &transparencies)?;
        options.damage = choice("damaged", damaged, &[("refuse", Damage::Refuse), ("accept", Damage::Accept)])?;
        options.upright = upright;
        let mut limits = ImageLimits::default();
        limits.max_bytes = max_bytes.unwrap_or(limits.max_bytes);
        limits.max_pixels = max_pixels.unwrap_or(limits.max_pixels);
        limits.max_side = max_side.unwrap_or(limits.max_side);
        limits.max_batch_bytes = max_batch_bytes.unwrap_or(limits.max_batch_bytes);
        options.limits = limits;
        let made = py.detach(|| {
            let recipe = match (config, path) {
                (Some(text), _) => Recipe::from_config(text),
                (None, path) => Recipe::from_file(path.unwrap_or_default()),
            }?;
            ImageProcessor::new(recipe, options)
        });
        Ok(Self { inner: Arc::new(made.map_err(config_error)?) })
    }

    /// Rows and columns of every tensor, or None if they depend on the images.
    #[getter]
    fn size(&self) -> Option<(u32, u32)> {
        self.inner.recipe().fixed_size()
    }

    /// Whether the images of a batch are padded to one size.
    #[getter]
    fn pads(&self) -> bool {
        self.inner.recipe().pad.is_some()
    }

    /// Takes images and finds the size of their batch.
    fn plan(&self, py: Python<'_>, images: &Bound<'_, PyAny>, threads: Option<usize>) -> PyResult<PyImageBatch> {
        let (mut items, mut absent) = (Vec::new(), Vec::new());
        for (index, image) in images.try_iter()?.enumerate() {
            items.push(bytes_of(&image?).unwrap_or_else(|reason| {
                absent.push((index, reason));
                PyBytes::new(py, b"").into()
            }));
        }
        let plan = released(py, threads, |work| self.inner.plan(&items, work))?.map_err(value_error)?;
        Ok(PyImageBatch { processor: Arc::clone(&self.inner), items, absent, plan })
    }
}

/// The bytes of an image, those of `bytes` as they are, others copied; or why it is none.
fn bytes_of(image: &Bound<'_, PyAny>) -> Result<PyBackedBytes, String> {
    if let Ok(bytes) = image.cast::<PyBytes>() {
        return Ok(bytes.clone().into());
    }
    let buffer = Array::of(image, "image").and_then(|array| {
        let bytes = array.elements::<u8>()?;
        Ok(PyBytes::new(image.py(), bytes).into())
    });
    buffer.map_err(|_| {
        let kind = image.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        format!("it is {kind}, expected the bytes of a file; read the file first")
    })
}

#[pymethods]
impl PyImageBatch {
    /// Dimensions of the batch.
    #[getter]
    fn shape(&self) -> (usize, usize, usize, usize) {
        let [images, a, b, c] = self.plan.shape(&self.processor);
        (images, a, b, c)
    }

    /// Dimensions of the mask.
    #[getter]
    fn mask_shape(&self) -> (usize, usize, usize) {
        let [images, rows, columns] = self.plan.mask_shape();
        (images, rows, columns)
    }

    /// Writes the batch into `out`, any contiguous memory given as bytes, and the mask; gives the failures.
    fn write(
        &self,
        py: Python<'_>,
        out: &Bound<'_, PyAny>,
        mask: Option<&Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<Vec<(usize, String)>> {
        let mut out = Array::of(out, "out")?;
        let mut mask = mask.map(|mask| Array::of(mask, "mask")).transpose()?;
        if let Some(mask) = &mask {
            mask.apart(&out)?;
        }
        let pixels = out.elements_mut::<u8>()?;
        let mask = mask.as_mut().map(|mask| mask.elements_mut::<i64>()).transpose()?;
        let done = released(py, threads, |work| self.processor.run(&self.plan, &self.items, pixels, mask, work))?;
        let failures = done.map_err(|error: ImageBatchError| value_error(error))?;
        let explained = |ImageFailure { index, error }| {
            let absent = self.absent.binary_search_by_key(&index, |&(at, _)| at);
            (index, absent.map_or_else(|_| error.to_string(), |at| self.absent[at].1.clone()))
        };
        Ok(failures.into_iter().map(explained).collect())
    }
}
