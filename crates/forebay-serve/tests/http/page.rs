//! The status page in a real browser: headless Chromium, driven over WebDriver. Left out, and said so, where there is
//! no `chromedriver`. With FOREBAY_SCREENSHOTS=<folder> pictures are kept, taken after some seconds of traffic.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read as _, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use forebay_serve::{backend::Takes, metrics::Stage};
use serde_json::{Value, json};

use crate::{
    client::{Connection, Server, wait_for},
    fake::model,
};

/// A browser with one window; ends when dropped.
struct Browser {
    driver: Child,
    connection: Connection,
    session: String,
    address: SocketAddr,
}

impl Browser {
    fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        let spawned = command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = spawned else {
            // Not by eprintln, which the test harness keeps to itself.
            let _ = std::io::stderr().write_all(b"left out: the status page in a browser (no chromedriver here)\n");
            return None;
        };
        let out = BufReader::new(driver.stdout.take().unwrap());
        let port = out.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let address: SocketAddr = ([127, 0, 0, 1], port.expect("chromedriver says its port")).into();
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1180"];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Self { driver, connection: Connection::open(address), session: String::new(), address };
        let headers = [("host", "localhost"), ("content-type", "application/json")];
        let answer = browser.connection.ask("POST", "/session", &headers, capabilities.to_string().as_bytes());
        if answer.text().contains("cannot find Chrome binary") {
            let _ = std::io::stderr()
                .write_all(b"left out: the status page in a browser (chromedriver without a browser)\n");
            return None;
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        browser.session = format!("/session/{}", answer.json()["value"]["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn command(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("{}{path}", self.session);
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let answer = self.connection.ask(
            method,
            &path,
            &[("host", "localhost"), ("content-type", "application/json")],
            body.as_bytes(),
        );
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        answer.json()["value"].clone()
    }

    fn open(&mut self, server: &Server) {
        self.command("POST", "/url", &json!({ "url": format!("http://{}/", server.address) }));
    }

    /// What a piece of JavaScript returns.
    fn run(&mut self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an element's text is `wanted`.
    fn wait_for_text(&mut self, id: &str, wanted: &str) {
        wait_for(&format!("{id} is {wanted:?}"), || {
            self.run(&format!("return document.getElementById({id:?}).innerText")) == json!(wanted)
        });
    }

    fn text(&mut self, id: &str) -> String {
        self.run(&format!("return document.getElementById({id:?}).innerText")).as_str().unwrap().to_owned()
    }

    fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.command("POST", "/goog/cdp/execute", &command);
    }

    fn screenshot(&mut self, name: &str) {
        if let Some(folder) = env::var_os("FOREBAY_SCREENSHOTS") {
            let picture = self.command("GET", "/screenshot", &Value::Null);
            let path = std::path::Path::new(&folder).join(name);
            fs::write(path, STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
        }
    }

    /// What the browser complained about.
    fn complaints(&mut self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    /// Also when a test failed: a browser outlives its driver.
    fn drop(&mut self) {
        let end = |session: &str| -> std::io::Result<()> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "DELETE {session} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            stream.read(&mut [0; 1024]).map(drop)
        };
        if !self.session.is_empty() {
            let _ = end(&self.session);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Some requests, and figures as workers would give them.
fn traffic(server: &Server, rounds: usize) {
    let mut connection = server.open();
    for round in 0..rounds {
        for (i, text) in ["abc", "some more words", "boom", "x"].iter().enumerate() {
            connection.ask("POST", "/predict", &[], format!("{{\"inputs\": {text:?}}}").as_bytes());
            let slow = 1.0 + ((round * 7 + i * 3) % 11) as f64 / 4.0;
            for (stage, seconds) in [
                (Stage::Ingest, 6e-5),
                (Stage::Queue, 2e-4),
                (Stage::BatchWait, 4e-5),
                (Stage::HandOver, 3e-5),
                (Stage::Forward, 9e-4),
            ] {
                server.metrics.stage(stage, seconds * slow);
            }
            server.metrics.batch(1 + (round * 5 + i) % 9, 100, 20);
        }
        connection.ask("POST", "/v2/models/fake/infer", &[], b"{}");
        connection.ask("POST", "/v1/embeddings", &[], br#"{"input": "a b c"}"#);
    }
}

#[test]
fn the_page_shows_what_goes_on_in_light_and_in_dark() {
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::start(Takes::Texts);
    browser.prefer("light");
    browser.open(&server);
    browser.wait_for_text("health", "ready");
    traffic(&server, 20);
    wait_for("the requests are there", || browser.text("rate-under").starts_with("120 "));
    assert_eq!(browser.text("model"), "fake");
    let workers = browser.text("workers");
    assert!(workers.contains("4711") && workers.contains("1 of 4") && workers.contains("ready"), "{workers}");
    let routes = browser.text("routes");
    assert!(routes.contains("/predict") && routes.contains("/v2/models/{model}/infer"), "{routes}");
    assert!(browser.text("rejections").contains("model failed"));
    assert!(browser.text("stages").contains("hand over"));
    assert!(browser.text("padding").contains("20.0 %"));
    // Nothing came from anywhere else, nothing failed, and nothing is wider than the window.
    let elsewhere =
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))";
    assert_eq!(browser.run(elsewhere), json!([]));
    assert_eq!(browser.run("return document.documentElement.scrollWidth <= window.innerWidth"), json!(true));
    // Text stands out from what is behind it: at least 4.5 to 1, as the guidelines for reading say.
    let contrast = "
        const part = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
        const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number); return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
        const panel = light(getComputedStyle(document.querySelector('.panel')).backgroundColor);
        return [...document.querySelectorAll('.value, .label, h2, td')].map((e) => light(getComputedStyle(e).color))
            .map((ink) => (Math.max(ink, panel) + 0.05) / (Math.min(ink, panel) + 0.05)).reduce((a, b) => Math.min(a, b));";
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let light = browser.run(ground);
    assert!(browser.run(contrast).as_f64().unwrap() >= 4.5, "in light");
    if env::var_os("FOREBAY_SCREENSHOTS").is_some() {
        for second in 0..24 {
            traffic(&server, 6 + second * 3 % 17);
            thread::sleep(Duration::from_millis(480));
        }
    }
    browser.screenshot("status-light.png");
    browser.prefer("dark");
    assert!(browser.run(ground) != light);
    assert!(browser.run(contrast).as_f64().unwrap() >= 4.5, "in dark");
    browser.screenshot("status-dark.png");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    drop(server);
    browser.wait_for_text("health", "no answer");
}

#[test]
fn the_page_asks_for_a_key_where_one_is_needed() {
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::with(model(Takes::Texts), &[("auth.keys", "open-sesame")]);
    browser.open(&server);
    browser.wait_for_text("health", "key needed");
    browser.screenshot("status-key.png");
    let enter = |key: &str| {
        format!("document.getElementById('secret').value = {key:?}; document.getElementById('key').requestSubmit()")
    };
    browser.run(&enter("wrong"));
    browser.wait_for_text("health", "key needed");
    browser.run(&enter("open-sesame"));
    browser.wait_for_text("health", "ready");
}
