//! Who is let in, before a byte of the body is read: key, rate, places, length.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use axum::http::{HeaderMap, StatusCode, header};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::problem::Problem;
use crate::{config::LimitsConfig, metrics::Metrics};

/// The bearer keys. None: everybody is let in.
pub(super) struct Keys(Vec<String>);

impl Keys {
    pub(super) fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    pub(super) fn required(&self) -> bool {
        !self.0.is_empty()
    }

    /// The number of the caller's key; 0 where none is needed. Takes as long for a wrong key as for a right one.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<usize, Problem> {
        if self.0.is_empty() {
            return Ok(0);
        }
        let refused = |text| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", text);
        let header = headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| refused("no key: send the header Authorization: Bearer <key>"))?;
        let (scheme, key) = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .ok_or_else(|| refused("the header Authorization is not: Bearer <key>"))?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refused("the header Authorization is not: Bearer <key>"));
        }
        let (mut found, mut number) = (Choice::from(0), 0u32);
        for (i, known) in (0u32..).zip(&self.0) {
            let same = known.as_bytes().ct_eq(key.trim().as_bytes());
            number.conditional_assign(&i, same);
            found |= same;
        }
        if bool::from(found) { Ok(number as usize) } else { Err(refused("the key is not one that is let in")) }
    }
}

/// Requests a second, for each key.
pub(super) struct Rates {
    per_s: f64,
    burst: f64,
    buckets: Vec<Mutex<(f64, Instant)>>,
}

impl Rates {
    pub(super) fn new(limits: &LimitsConfig, keys: usize) -> Option<Self> {
        let per_s = limits.requests_per_s?;
        let burst = limits.burst.map_or_else(|| per_s.max(1.0), f64::from);
        let full = || Mutex::new((burst, Instant::now()));
        Some(Self { per_s, burst, buckets: (0..keys.max(1)).map(|_| full()).collect() })
    }

    /// Takes one from the bucket of key `key`.
    pub(super) fn check(&self, key: usize, now: Instant) -> Result<(), Problem> {
        let mut bucket = self.buckets[key].lock().unwrap_or_else(PoisonError::into_inner);
        let (level, since) = *bucket;
        let level = (level + now.saturating_duration_since(since).as_secs_f64() * self.per_s).min(self.burst);
        if level < 1.0 {
            *bucket = (level, now);
            let wait = ((1.0 - level) / self.per_s).ceil().max(1.0);
            let text = format!("more than {} requests a second with this key; try again in {wait} s", self.per_s);
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", text).retry_after(wait as u64));
        }
        *bucket = (level - 1.0, now);
        Ok(())
    }
}

/// A place among the requests under way; given back when dropped, whatever ended the request.
#[derive(Debug)]
pub(super) struct Place(Arc<Metrics>);

impl Place {
    pub(super) fn take(metrics: &Arc<Metrics>, limit: usize) -> Result<Self, Problem> {
        // ORDER none, Relaxed: a count; nothing else is read on the strength of it.
        let before = metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(metrics));
        if usize::try_from(before).unwrap_or(0) >= limit {
            let text = format!("{limit} requests are under way, which is the limit; try again in 1 s");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "in_flight", text).retry_after(1));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // ORDER none, Relaxed: as above.
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a body of this length and encoding may come.
pub(super) fn check_body(headers: &HeaderMap, limit: u64) -> Result<(), Problem> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let text = "compressed bodies are not taken: a small one can become any size; send it as it is";
        return Err(Problem::unsupported_type(text).closing());
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length > limit => Err(too_long(Some(length), limit)),
        _ => Ok(()),
    }
}

pub(super) fn too_long(length: Option<u64>, limit: u64) -> Problem {
    let has = length.map_or_else(|| "more".to_owned(), |length| format!("{length} bytes"));
    Problem::too_large(format!("the body has {has}, {limit} bytes may come (limits.body_bytes)")).closing()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        headers
    }

    #[test]
    fn only_a_whole_key_is_one() {
        let keys = Keys::new(vec!["alpha".to_owned(), "beta".to_owned()]);
        assert_eq!(keys.check(&headers("Bearer beta")).ok(), Some(1));
        assert_eq!(keys.check(&headers("bearer  alpha ")).ok(), Some(0));
        for wrong in ["Bearer bet", "Bearer betaa", "Bearer ", "Basic beta", "beta", "Bearer alpha,beta"] {
            let problem = keys.check(&headers(wrong)).expect_err(wrong);
            assert_eq!(problem.status, StatusCode::UNAUTHORIZED);
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert_eq!(Keys::new(Vec::new()).check(&HeaderMap::new()).ok(), Some(0));
    }

    #[test]
    fn a_key_that_used_its_rate_up_waits_and_others_do_not() {
        let limits = LimitsConfig { requests_per_s: Some(2.0), burst: Some(3), ..LimitsConfig::default() };
        let rates = Rates::new(&limits, 2).expect("a rate");
        let now = Instant::now();
        assert!((0..3).all(|_| rates.check(0, now).is_ok()));
        assert_eq!(rates.check(0, now).expect_err("used up").retry_after_s, Some(1));
        assert!(rates.check(1, now).is_ok());
        assert!(rates.check(0, now + Duration::from_millis(600)).is_ok());
        assert!(rates.check(0, now + Duration::from_millis(600)).is_err());
    }

    #[test]
    fn places_come_back() {
        let metrics = Metrics::new();
        let places: Vec<_> = (0..2).map(|_| Place::take(&metrics, 2).expect("a place")).collect();
        assert!(Place::take(&metrics, 2).is_err());
        drop(places);
        assert!(Place::take(&metrics, 2).is_ok());
        assert_eq!(metrics.in_flight.load(Ordering::Relaxed), 0);
    }
}
