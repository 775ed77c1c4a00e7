//! File, environment and flags become one table; each value is held against its key before anything is made of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use forebay::DType;
use serde::Deserialize as _;
use toml::{Table, Value};

use super::{
    Config, ConfigError, Origin,
    keys::{KEYS, Kind, PREFIX, find, is_table, nearest},
};

/// Where each key was set; the last one counts.
#[derive(Default)]
struct Origins(BTreeMap<String, Origin>);

impl Origins {
    fn of(&self, key: &str) -> Origin {
        let mut path = key;
        loop {
            if let Some(origin) = self.0.get(path) {
                return origin.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Origin::Default,
            }
        }
    }
}

impl Config {
    /// The configuration that the file at `path`, then `environment`, then `flags` (key and value, as `--set` takes them)
    /// say; the last one counts. Relative paths of the file are relative to its folder, others to the current one.
    ///
    /// Everything is [checked](Self::check). Blocks: reads the file, looks whether the files it names are there.
    ///
    /// # Errors
    /// [`ConfigError`] with the origin, the key, what was found and expected. Each is a case for exit code 64.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let (mut table, mut origins) = (Table::new(), Origins::default());
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let mut folder = here.clone();
        if let Some(path) = path {
            folder = path.parent().map_or_else(|| here.clone(), |parent| here.join(parent));
            table = read(path)?;
            let origin = Origin::File(path.to_owned());
            check_table("", &mut table, &folder, &origin)?;
            origins.0.insert(String::new(), origin);
        }
        for (name, text) in environment {
            if !name.starts_with(PREFIX) {
                continue;
            }
            let origin = Origin::Environment(name.clone());
            let Some(key) = KEYS.iter().find(|key| key.variable().as_ref() == Some(&name)) else {
                let nearest = nearest_variable(&name);
                return Err(ConfigError::Unknown { origin, key: name, nearest });
            };
            set(&mut table, &mut origins, key.path, &text, &here, &origin)?;
        }
        for (key, text) in flags {
            set(&mut table, &mut origins, key.trim(), text.trim(), &here, &Origin::Flag)?;
        }
        let origin = path.map_or(Origin::Default, |path| Origin::File(path.to_owned()));
        required(&table, &origin)?;
        let worker = table.entry("worker").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(worker) = worker {
            worker.entry("cwd").or_insert_with(|| Value::String(folder.display().to_string()));
        }
        let config = Self::deserialize(Value::Table(table)).map_err(|error| ConfigError::Value {
            origin: origin.clone(),
            key: "the whole".to_owned(),
            found: error.message().trim().to_owned(),
            expected: "the keys of docs/serve/configuration.md".to_owned(),
        })?;
        config.check().map_err(|mut error| {
            match &mut error {
                ConfigError::Value { origin, key, .. } | ConfigError::Missing { origin, key, .. } => {
                    *origin = match origins.of(key) {
                        Origin::Default => path.map_or(Origin::Default, |path| Origin::File(path.to_owned())),
                        known => known,
                    };
                }
                _ => {}
            }
            error
        })?;
        Ok(config)
    }
}

fn nearest_variable(name: &str) -> Option<String> {
    nearest(name, KEYS.iter().filter_map(super::Key::variable))
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    text.parse().map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        ConfigError::Syntax { path: path.to_owned(), line, message: error.message().trim().to_owned() }
    })
}

/// Holds every value below `prefix` against its key.
fn check_table(prefix: &str, table: &mut Table, folder: &Path, origin: &Origin) -> Result<(), ConfigError> {
    for (name, value) in table.iter_mut() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (find(&path), &mut *value) {
            (Some(key), _) => check_value(&path, key.kind, value, folder, origin)?,
            (None, Value::Table(inner)) if is_table(&path) => check_table(&path, inner, folder, origin)?,
            (None, _) if is_table(&path) => {
                return Err(value_error(origin, &path, value, format!("a table: [{path}]")));
            }
            (None, _) => return Err(unknown(origin, &path)),
        }
    }
    Ok(())
}

fn unknown(origin: &Origin, path: &str) -> ConfigError {
    let mut names: Vec<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    let tables = KEYS.iter().filter_map(|key| key.path.rsplit_once('.').map(|(table, _)| table.to_owned()));
    names.extend(tables.filter(|table| !table.ends_with("[]")));
    ConfigError::Unknown { origin: origin.clone(), key: path.to_owned(), nearest: nearest(path, names.into_iter()) }
}

fn value_error(origin: &Origin, key: &str, found: &Value, expected: impl Into<String>) -> ConfigError {
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(80) {
        found.truncate(end);
        found.push('…');
    }
    ConfigError::Value { origin: origin.clone(), key: key.to_owned(), found, expected: expected.into() }
}

fn check_value(path: &str, kind: Kind, value: &mut Value, folder: &Path, origin: &Origin) -> Result<(), ConfigError> {
    let wrong = |value: &Value| Err(value_error(origin, path, value, kind.expected()));
    match (kind, &mut *value) {
        (Kind::Text | Kind::File | Kind::Choice(_) | Kind::DTypeName, Value::String(text)) => match kind {
            Kind::File if !text.is_empty() => *text = folder.join(&*text).display().to_string(),
            Kind::File => return wrong(value),
            Kind::Choice(known) if !known.contains(&text.as_str()) => return wrong(value),
            Kind::DTypeName if text.parse::<DType>().is_err() => return wrong(value),
            _ => {}
        },
        (Kind::Flag, Value::Boolean(_)) => {}
        (Kind::Whole(least, most), Value::Integer(number)) if (least..=most).contains(number) => {}
        (Kind::Number(least, most), Value::Float(number)) if (least..=most).contains(number) => {}
        (Kind::Number(least, most), Value::Integer(number)) if (least..=most).contains(&(*number as f64)) => {}
        (Kind::Texts, Value::Array(all)) if all.iter().all(Value::is_str) => {}
        (Kind::Wholes(least, most), Value::Array(all))
            if all.iter().all(|one| one.as_integer().is_some_and(|n| (least..=most).contains(&n))) => {}
        (Kind::Shape, Value::Array(all))
            if all.len() < 8 && all.iter().all(|one| one.as_integer().is_some_and(|n| n == -1 || n > 0)) => {}
        (Kind::Map, Value::Table(all)) if all.values().all(Value::is_str) => {}
        (Kind::Tables, Value::Array(all)) if all.iter().all(Value::is_table) => {
            for (i, one) in all.iter_mut().enumerate() {
                check_entry(path, i, one, folder, origin)?;
            }
        }
        _ => return wrong(value),
    }
    Ok(())
}

/// Holds one of the tables that repeat against its keys.
fn check_entry(path: &str, i: usize, one: &mut Value, folder: &Path, origin: &Origin) -> Result<(), ConfigError> {
    let Value::Table(table) = one else { return Ok(()) };
    let prefix = format!("{path}[].");
    for (name, value) in table.iter_mut() {
        let key = format!("{path}[{i}].{name}");
        match find(&format!("{prefix}{name}")) {
            Some(known) => check_value(&key, known.kind, value, folder, origin)?,
            None => {
                let names = KEYS.iter().filter_map(|key| key.path.strip_prefix(&prefix)).map(str::to_owned);
                return Err(ConfigError::Unknown { origin: origin.clone(), key, nearest: nearest(name, names) });
            }
        }
    }
    let needed = KEYS.iter().filter(|key| key.default == "required");
    for (key, name) in needed.filter_map(|key| key.path.strip_prefix(&prefix).map(|name| (key, name))) {
        if !table.contains_key(name) {
            let (origin, key, expected) = (origin.clone(), format!("{path}[{i}].{name}"), key.kind.expected());
            return Err(ConfigError::Missing { origin, key, expected });
        }
    }
    Ok(())
}

impl Kind {
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::File => "a path".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Self::Number(f64::MIN, _) => "a number".to_owned(),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Choice(known) => format!("one of {}", known.join(", ")),
            Self::DTypeName => format!("one of {}", DType::ALL.map(DType::name).join(", ")),
            Self::Shape => "a list of at most 7 dims, each -1 or at least 1".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::Wholes(least, most) => format!("a list of whole numbers from {least} to {most}"),
            Self::Map => "a table of texts".to_owned(),
            Self::Tables => "a list of tables".to_owned(),
        }
    }

    /// What `text`, of the environment or the command line, means. Lists are TOML's, or words apart by spaces.
    fn parse(self, text: &str) -> Option<Value> {
        let toml = || format!("x = {text}").parse::<Table>().ok()?.remove("x");
        match self {
            Self::Text | Self::File | Self::Choice(_) | Self::DTypeName => Some(Value::String(text.to_owned())),
            Self::Texts if !text.starts_with('[') => {
                Some(Value::Array(text.split_whitespace().map(|word| Value::String(word.to_owned())).collect()))
            }
            Self::Wholes(..) | Self::Shape if !text.starts_with('[') => {
                let numbers = text.split([' ', ',']).filter(|word| !word.is_empty());
                numbers.map(|word| word.parse().ok().map(Value::Integer)).collect::<Option<_>>().map(Value::Array)
            }
            _ => toml(),
        }
    }
}

/// Sets `key` to what `text` means.
fn set(
    table: &mut Table,
    origins: &mut Origins,
    key: &str,
    text: &str,
    folder: &Path,
    origin: &Origin,
) -> Result<(), ConfigError> {
    let mut value = if let Some(known) = find(key).filter(|known| !known.path.contains("[]")) {
        let wrong = || value_error(origin, key, &Value::String(text.to_owned()), known.kind.expected());
        let mut value = known.kind.parse(text).ok_or_else(wrong)?;
        check_value(key, known.kind, &mut value, folder, origin)?;
        value
    } else if key.strip_prefix("worker.env.").is_some_and(|name| !name.is_empty() && !name.contains('.')) {
        Value::String(text.to_owned())
    } else {
        return Err(unknown(origin, key));
    };
    let mut at = table;
    let mut names = key.split('.').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            at.insert(name.to_owned(), std::mem::replace(&mut value, Value::Boolean(false)));
            break;
        }
        let inner = at.entry(name).or_insert_with(|| Value::Table(Table::new()));
        match inner {
            Value::Table(inner) => at = inner,
            // The file was checked: tables are tables.
            _ => return Err(unknown(origin, key)),
        }
    }
    origins.0.insert(key.to_owned(), origin.clone());
    Ok(())
}

/// Keys of `[model.input]` that only one type has.
fn of_type(kind: &str) -> &'static [&'static str] {
    match kind {
        "text" => &[
            "tokenizer",
            "max_tokens",
            "truncate",
            "token_type_ids",
            "pad_to_multiple_of",
            "pad_left",
            "special_tokens",
        ],
        "image" => &["processor", "max_pixels"],
        "tensors" => &["tensors"],
        _ => &["schema"],
    }
}

/// Whether what must be there is there.
fn required(table: &Table, origin: &Origin) -> Result<(), ConfigError> {
    let at = |path: &str| {
        let mut names = path.split('.');
        let first = table.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    };
    let kind = at("model.input.type").and_then(Value::as_str).unwrap_or_default();
    for key in KEYS.iter().filter(|key| key.default == "required" && !key.path.contains("[]")) {
        let name = key.path.strip_prefix("model.input.").filter(|name| *name != "type");
        if name.is_some_and(|name| !of_type(kind).contains(&name)) {
            continue;
        }
        if at(key.path).is_none() {
            let (origin, expected) = (origin.clone(), key.kind.expected());
            return Err(ConfigError::Missing { origin, key: key.path.to_owned(), expected });
        }
    }
    if let Some(Value::Table(input)) = at("model.input") {
        let foreign = |name: &str| name != "type" && !of_type(kind).contains(&name);
        if let Some((name, value)) = input.iter().find(|(name, _)| foreign(name)) {
            let expected = format!("nothing: with type = \"{kind}\" there is {}", of_type(kind).join(", "));
            return Err(value_error(origin, &format!("model.input.{name}"), value, expected));
        }
    }
    Ok(())
}
