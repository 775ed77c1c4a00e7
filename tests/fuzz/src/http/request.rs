//! A request made of an input: route, method, what the body says that it is, headers, body.

use serde_json::json;

use crate::bytes::Bytes;

/// What there is, each with the method that it takes. The last ones are not there, or only sometimes.
const ROUTES: [(&str, &str); 28] = [
    ("POST", "/predict"),
    ("POST", "/v2/models/fake/infer"),
    ("POST", "/v1/embeddings"),
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
    ("POST", "/tokenize"),
    ("POST", "/v2/models/fake/versions/1/infer"),
    ("POST", "/admin/reload"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/"),
    ("GET", "/info"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("GET", "/v1/models"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/fake"),
    ("GET", "/v2/models/fake/ready"),
    ("GET", "/v2/models/fake/versions/1"),
    ("GET", "/v2/models/fake/versions/1/ready"),
    ("POST", "/v2/models/other/infer"),
    ("POST", "/v2/models/f%61ke/infer?a=b"),
    ("GET", "/v2/models/fake/versions/2"),
    ("POST", "//predict"),
    ("POST", "/predict/../predict"),
];
const METHODS: [&str; 6] = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "BREW"];
const TYPES: [&str; 8] = [
    "application/json",
    "image/png",
    "application/octet-stream",
    "multipart/form-data; boundary=b",
    "application/x-www-form-urlencoded",
    "text/json; charset=utf-8",
    "multipart/form-data",
    "text/plain",
];
/// Headers whose value the input says.
const HEADERS: [&str; 8] = [
    "x-request-timeout-ms",
    "x-priority",
    "x-request-id",
    "traceparent",
    "content-encoding",
    "origin",
    "authorization",
    "inference-header-content-length",
];
/// The header whose value decides whether there is time for an answer.
const TIMEOUT: &str = HEADERS[0];
const ID: &str = HEADERS[2];
/// Names of a form's parts.
const PARTS: [&str; 4] = ["inputs", "parameters", "image", ""];

#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: Vec<u8>,
    pub(super) headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
    /// Bytes of a chunk, if the body comes in chunks.
    chunk: Option<usize>,
}

impl Request {
    /// A request without a body.
    pub(super) fn get(path: &str) -> Self {
        Self { method: "GET", path: path.into(), ..Self::default() }
    }

    /// A request with a JSON body.
    pub(super) fn json(path: &str, body: &str) -> Self {
        Self { method: "POST", path: path.into(), body: body.into(), ..Self::default() }
    }

    /// The request that an input means. `how` says what the body is made of.
    pub(super) fn new(how: u8, mut input: Bytes<'_>) -> Self {
        let (route, method) = (usize::from(input.byte()), usize::from(input.byte()));
        let (own, path) = ROUTES[route % ROUTES.len()];
        let path = match route {
            // Anything that is a path.
            0xf0.. => {
                let rest = input.take(method >> 3).iter();
                b"/v2/models/"
                    .iter()
                    .copied()
                    .take(1 + (method & 15))
                    .chain(rest.map(|&byte| of_a_path(byte)))
                    .collect()
            }
            _ => path.into(),
        };
        // As a rule the one that it takes.
        let method = METHODS.get((method & 15).wrapping_sub(10)).copied().unwrap_or(own);
        let mut request = Self { method, path, ..Self::default() };
        let kind = input.byte();
        match usize::from(kind & 15) {
            0 | 9.. => {}
            at => request.headers.push(("content-type", TYPES[at - 1].into())),
        }
        if kind & 0x20 != 0 {
            request.chunk = Some(1 + usize::from(input.byte()));
        }
        if kind & 0x40 != 0 {
            request.headers.push(("expect", b"100-continue".into()));
        }
        if kind & 0x80 != 0 {
            let which = input.byte();
            for (_, &name) in HEADERS.iter().enumerate().filter(|(bit, _)| which >> bit & 1 == 1) {
                let len = input.below(64);
                let value: Vec<u8> = input.take(len).iter().map(|&byte| of_a_header(byte)).collect();
                request.headers.push((name, value));
            }
        }
        request.body = match how {
            0 => input.rest().into(),
            1 => form(input),
            2 => {
                let length = input.half().to_string();
                request.headers.push((HEADERS[7], length.into_bytes()));
                input.rest().into()
            }
            _ => texts(&request.path, input),
        };
        request
    }

    /// Lets itself be known, where that is asked for.
    pub(super) fn with_key(mut self, key: &str) -> Self {
        self.headers.push(("authorization", format!("Bearer {key}").into_bytes()));
        self
    }

    fn value(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_slice())
    }

    /// Whether the client says that it does not wait long.
    pub(super) fn is_in_a_hurry(&self) -> bool {
        self.value(TIMEOUT).is_some()
    }

    /// The id that the answer must have, if the request gave one.
    pub(super) fn id(&self) -> Option<&str> {
        let id = str::from_utf8(self.value(ID)?).ok()?;
        (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic())).then_some(id)
    }

    /// Its bytes on the connection.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = [self.method.as_bytes(), b" ", self.path.as_slice(), b" HTTP/1.1\r\nhost: fuzz\r\n"].concat();
        for (name, value) in &self.headers {
            out.extend([name.as_bytes(), b": ", value.as_slice(), b"\r\n"].concat());
        }
        match self.chunk {
            None => {
                out.extend(format!("content-length: {}\r\n\r\n", self.body.len()).bytes());
                out.extend_from_slice(&self.body);
            }
            Some(len) => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                for chunk in self.body.chunks(len) {
                    out.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"0\r\n\r\n");
            }
        }
        out
    }
}

/// A byte that does not end the path.
fn of_a_path(byte: u8) -> u8 {
    if byte.is_ascii_graphic() && byte != b'#' { byte } else { b'%' }
}

/// A byte that does not end the header.
fn of_a_header(byte: u8) -> u8 {
    if byte >= 0x20 && byte != 0x7f { byte } else { b'.' }
}

/// A form whose parts are the input's, each with its name and what it says that it is.
fn form(mut input: Bytes<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    while !input.is_empty() {
        let what = input.byte();
        let name = PARTS[usize::from(what & 3)];
        out.extend(format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"").bytes());
        if what & 4 != 0 {
            out.extend_from_slice(b"; filename=\"a.png\"");
        }
        if what & 8 != 0 {
            out.extend_from_slice(b"\r\ncontent-type: image/png");
        }
        let len = input.below(64);
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(input.take(len));
        // Now and then the end is missing.
        out.extend_from_slice(if what & 0xf0 == 0xf0 { b"" } else { b"\r\n" });
    }
    out.extend_from_slice(b"--b--\r\n");
    out
}

/// The texts of an input as the route takes them.
fn texts(path: &[u8], mut input: Bytes<'_>) -> Vec<u8> {
    let how = input.byte();
    let mut all = Vec::new();
    while !input.is_empty() {
        let len = input.below(24);
        all.push(String::from_utf8_lossy(input.take(len)).into_owned());
    }
    let value = match &all[..] {
        [one] if how & 1 == 0 => json!(one),
        [one, two, ..] if how & 2 != 0 => json!([[one, two], one]),
        all => json!(all),
    };
    let body = match path {
        b"/v1/embeddings" => json!({
            "input": value, "encoding_format": if how & 4 == 0 { "float" } else { "base64" }, "model": "fake",
        }),
        b"/tokenize" => json!({ "inputs": value, "special_tokens": how & 4 == 0 }),
        path if path.starts_with(b"/v2/") => json!({
            "id": "7",
            "parameters": { "binary_data_output": how & 4 == 0 },
            "inputs": [{ "name": "text", "shape": [all.len()], "datatype": "BYTES", "data": value }],
        }),
        _ => json!({ "inputs": value, "parameters": { "k": how } }),
    };
    body.to_string().into_bytes()
}
