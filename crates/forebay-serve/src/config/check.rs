//! What the values of a configuration must be beyond their types: names, addresses, files that are there, what fits
//! together.

use std::{collections::BTreeSet, net::ToSocketAddrs, path::Path};

use forebay::DType;

use super::{Config, ConfigError, InputConfig, Origin};

/// A file that keys are read from has at most this many bytes.
const KEYS_FILE_BYTES: u64 = 1 << 20;

fn wrong(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> ConfigError {
    ConfigError::Value { origin: Origin::Default, key: key.into(), found: found.to_string(), expected: expected.into() }
}

impl Config {
    /// Whether the values fit together, and the files they name are there. [`Config::load`] has done it; what a program
    /// puts together by itself has not been through it.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_server()?;
        self.check_model()?;
        self.check_input()?;
        if self.worker.command.first().is_none_or(String::is_empty) {
            let found = format!("{:?}", self.worker.command);
            return Err(wrong(
                "worker.command",
                found,
                "a program and its arguments, such as [\"python\", \"worker.py\"]",
            ));
        }
        if let Some(cwd) = self.worker.cwd.as_deref().filter(|cwd| !cwd.is_dir()) {
            return Err(wrong("worker.cwd", cwd.display(), "a folder that is there"));
        }
        if !self.batch.buckets.is_sorted_by(|a, b| a < b) {
            return Err(wrong("batch.buckets", format!("{:?}", self.batch.buckets), "lengths that grow"));
        }
        Ok(())
    }

    /// The bearer keys: those of `auth.keys` and those of `auth.keys_file`. Empty: everybody is let in.
    ///
    /// # Errors
    /// The file cannot be read, or has no key in it.
    pub fn bearer_keys(&self) -> Result<Vec<String>, ConfigError> {
        let mut keys = self.auth.keys.clone();
        if let Some(path) = &self.auth.keys_file {
            let bad = |found: String| wrong("auth.keys_file", found, "a file with one key a line");
            let size = path.metadata().map_err(|error| bad(format!("{}: {error}", path.display())))?.len();
            if size > KEYS_FILE_BYTES {
                return Err(bad(format!("{}: {size} bytes", path.display())));
            }
            let text = std::fs::read_to_string(path).map_err(|error| bad(format!("{}: {error}", path.display())))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(str::to_owned));
            if keys.len() == before {
                return Err(bad(format!("{}: no key", path.display())));
            }
        }
        // The key itself is not shown: this text goes into logs.
        if let Some(i) = keys.iter().position(|key| key.is_empty() || key.bytes().any(|b| !b.is_ascii_graphic())) {
            return Err(wrong("auth.keys", format!("key {i}"), "keys of printable ASCII without spaces"));
        }
        Ok(keys)
    }

    fn check_server(&self) -> Result<(), ConfigError> {
        let address = |key: &str, text: &str| match text.to_socket_addrs().map(|mut all| all.next().is_some()) {
            Ok(true) => Ok(()),
            _ => Err(wrong(key, format!("{text:?}"), "an address and a port, such as 127.0.0.1:8080 or [::1]:0")),
        };
        address("server.listen", &self.server.listen)?;
        if let Some(text) = &self.server.grpc_listen {
            address("server.grpc_listen", text)?;
            if cfg!(not(feature = "grpc")) {
                return Err(wrong("server.grpc_listen", format!("{text:?}"), "nothing: this build is without gRPC"));
            }
        }
        if let Some(text) = &self.trace.otlp {
            let bad = || wrong("trace.otlp", format!("{text:?}"), "http://host:port of an OTLP collector over HTTP");
            let uri: axum::http::Uri = text.parse().map_err(|_| bad())?;
            if uri.scheme_str() != Some("http") || uri.host().is_none() {
                return Err(bad());
            }
        }
        if self.limits.burst.is_some() && self.limits.requests_per_s.is_none() {
            let found = self.limits.burst.unwrap_or_default();
            return Err(wrong("limits.burst", found, "limits.requests_per_s beside it"));
        }
        if self.log.level.parse::<tracing_subscriber::filter::Targets>().is_err() {
            let expected = "error, warn, info, debug, trace, or such as info,forebay_serve::engine=debug";
            return Err(wrong("log.level", format!("{:?}", self.log.level), expected));
        }
        self.bearer_keys().map(drop)
    }

    fn check_model(&self) -> Result<(), ConfigError> {
        let model = &self.model;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let named = |name: &str| {
            name.len() <= 40
                && name.starts_with(plain)
                && name.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'))
        };
        if !named(&model.name) {
            return Err(wrong(
                "model.name",
                format!("{:?}", model.name),
                "[a-z0-9][a-z0-9._-]*, at most 40 characters",
            ));
        }
        let version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if model.version.is_empty() || model.version.len() > 40 || !model.version.chars().all(version) {
            return Err(wrong("model.version", format!("{:?}", model.version), "letters, digits, '.', '_' and '-'"));
        }
        let mut names = BTreeSet::new();
        for (i, parameter) in model.parameters.iter().enumerate() {
            let key = |name: &str| format!("model.parameters[{i}].{name}");
            unique(&mut names, key("name"), &parameter.name)?;
            let dtype = dtype(key("dtype"), &parameter.dtype)?;
            let (low, high) =
                range_of(dtype).ok_or_else(|| wrong(key("dtype"), dtype, "an integer, float32, float64 or bool"))?;
            let (least, most) = (parameter.min.unwrap_or(low).max(low), parameter.max.unwrap_or(high).min(high));
            if least > most {
                return Err(wrong(key("min"), least, format!("at most max, which is {most}")));
            }
            if !(least..=most).contains(&parameter.default) {
                return Err(wrong(key("default"), parameter.default, format!("from {least} to {most}, as {dtype}")));
            }
        }
        let mut names = BTreeSet::new();
        for (i, output) in model.outputs.iter().enumerate() {
            unique(&mut names, format!("model.outputs[{i}].name"), &output.name)?;
            dtype(format!("model.outputs[{i}].dtype"), &output.dtype)?;
        }
        Ok(())
    }

    fn check_input(&self) -> Result<(), ConfigError> {
        match &self.model.input {
            InputConfig::Text(text) => file("model.input.tokenizer", &text.tokenizer),
            InputConfig::Image(image) => file("model.input.processor", &image.processor),
            InputConfig::Table(table) => file("model.input.schema", &table.schema),
            InputConfig::Tensors { tensors } => {
                if tensors.is_empty() {
                    return Err(wrong("model.input.tensors", "[]", "at least one tensor"));
                }
                let mut names: BTreeSet<&str> = self.model.parameters.iter().map(|p| p.name.as_str()).collect();
                for (i, tensor) in tensors.iter().enumerate() {
                    let key = |name: &str| format!("model.input.tensors[{i}].{name}");
                    unique(&mut names, key("name"), &tensor.name)?;
                    dtype(key("dtype"), &tensor.dtype)?;
                    let vary = tensor.shape.iter().filter(|dim| **dim == -1).count();
                    if tensor.max_dims.len() != vary {
                        let found = format!("{:?}", tensor.max_dims);
                        return Err(wrong(key("max_dims"), found, format!("{vary}, one for each -1 in shape")));
                    }
                }
                Ok(())
            }
        }
    }
}

fn unique<'a>(names: &mut BTreeSet<&'a str>, key: String, name: &'a str) -> Result<(), ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(wrong(key, format!("{name:?}"), "letters, digits, '.', '_', '-' and '/', at most 64"));
    }
    if !names.insert(name) {
        return Err(wrong(key, format!("{name:?}"), "a name that nothing else beside it has"));
    }
    Ok(())
}

fn dtype(key: String, name: &str) -> Result<DType, ConfigError> {
    name.parse().map_err(|error: forebay::UnknownDType| wrong(key, format!("{name:?}"), error.to_string()))
}

/// The least and the greatest value of a parameter's element type; `None` where it cannot be one.
fn range_of(dtype: DType) -> Option<(f64, f64)> {
    Some(match dtype {
        DType::Bool => (0.0, 1.0),
        DType::U8 => (0.0, u8::MAX.into()),
        DType::U16 => (0.0, u16::MAX.into()),
        DType::U32 => (0.0, u32::MAX.into()),
        // Beyond 2^53 an f64 has gaps, and a default is an f64.
        DType::U64 => (0.0, 9_007_199_254_740_992.0),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I64 => (-9_007_199_254_740_992.0, 9_007_199_254_740_992.0),
        DType::F32 => (f32::MIN.into(), f32::MAX.into()),
        DType::F64 => (f64::MIN, f64::MAX),
        DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | DType::C64 | DType::C128 => return None,
    })
}

fn file(key: &str, path: &Path) -> Result<(), ConfigError> {
    if path.is_file() { Ok(()) } else { Err(wrong(key, path.display(), "a file that is there")) }
}
