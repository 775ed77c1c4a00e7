//! Sizes and times: as they are typed, and as they are shown.

use std::{fmt, str::FromStr, time::Duration};

/// Bytes, typed as `65536`, `64KiB`, `1MiB`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    /// As the size of something in memory.
    pub(crate) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let unit: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            _ => return Err("expected bytes, such as 65536, 64KiB, 1MiB or 2GiB".to_owned()),
        };
        let number: u64 =
            number.parse().map_err(|_| "expected bytes, such as 65536, 64KiB, 1MiB or 2GiB".to_owned())?;
        number.checked_mul(unit).map(Self).ok_or_else(|| "more bytes than there can be".to_owned())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let text = match units.into_iter().find(|&(unit, _)| self.0 >= unit) {
            Some((unit, name)) if self.0.is_multiple_of(unit) => format!("{} {name}", self.0 / unit),
            Some((unit, name)) => format!("{:.1} {name}", self.0 as f64 / unit as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// A time, typed as `60`, `1.5s`, `500ms`, `2m`, or `none` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<Duration>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        seconds(text).map(|time| Self(Some(time))).map_err(|e| format!("{e}, or none to wait without end"))
    }
}

/// A time in seconds unless it has a unit.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time, such as 30, 1.5s, 500ms or 2m".to_owned();
    let (number, unit) = split(text);
    let unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| expected())
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A number with its thousands apart: `31 102`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A count per second: `1.24 M`.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 1e9 => format!("{:.2} G", r / 1e9),
        r if r >= 1e6 => format!("{:.2} M", r / 1e6),
        r if r >= 1e4 => format!("{:.1} k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

/// A time to two digits or so: `340 ms`, `12.4 s`, `3 min 05 s`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_are_typed() {
        for (text, bytes) in [("0", 0), ("65536", 65536), ("64KiB", 65536), ("1 MiB", 1 << 20), ("2g", 2 << 30)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-1", "1TB", "99999999999GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(Bytes(1 << 20).to_string(), "1 MiB");
        assert_eq!(Bytes(65_000).to_string(), "63.5 KiB");
    }

    #[test]
    fn times_read_as_they_are_typed() {
        for (text, ms) in [("60", 60_000), ("1.5s", 1500), ("500ms", 500), ("2m", 120_000), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Limit(Some(Duration::from_millis(ms)))), "{text}");
        }
        assert_eq!("none".parse(), Ok(Limit(None)));
        for text in ["", "s", "1 year", "-1", "nan", "1e400"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(grouped(31102), "31 102");
        assert_eq!(grouped(7), "7");
        assert_eq!(rate(1_240_000.0), "1.24 M");
        assert_eq!(span(Duration::from_millis(340)), "340 ms");
        assert_eq!(span(Duration::from_secs(185)), "3 min 05 s");
    }
}
