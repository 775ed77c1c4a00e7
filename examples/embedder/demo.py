"""`make serve-demo`: starts the embedder behind `forebay serve`, asks it over HTTP, compares with a reference, stops it.

The reference is `transformers` on the same files, a text at a time: no batching, no padding, no ring. Exit code 0 means
that every number agreed to 1e-4 and that nothing was left behind.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples/embedder/embedder.toml"
FOREBAY = pathlib.Path(os.environ.get("FOREBAY_BIN", ROOT / "target/release/forebay"))
REQUEST = ROOT / "examples/embedder/request.json"
PATIENCE_S = 120
TOLERANCE = 1e-4


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def ask(url: str, request: object = None) -> dict:
    """What the server says: to a GET, or to a POST with JSON."""
    body = None if request is None else json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_S) as answer:
        said = answer.read()
    return json.loads(said) if said[:1] in b"{[" and said else {}


def until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    begin = time.monotonic()
    while True:
        try:
            ask(f"{url}/readyz")
        except (urllib.error.URLError, OSError) as error:
            if server.poll() is not None:
                raise SystemExit(f"FAILED: forebay serve ended with exit code {server.returncode}") from None
            if time.monotonic() - begin > PATIENCE_S:
                raise SystemExit(f"FAILED: not ready after {PATIENCE_S} s: {error}") from None
            time.sleep(0.05)
        else:
            return


def reference(texts: list[str]) -> list[list[float]]:
    """Mean pooling and normalization, as the model's card says."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel
    from transformers.utils import logging

    sys.path.insert(0, str(CONFIG.parent))
    from minilm import MODEL

    logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    model = BertModel.from_pretrained(MODEL)
    rows = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state
        rows.append(torch.nn.functional.normalize(hidden.mean(1), dim=1)[0].tolist())
    return rows


def main() -> int:
    """Starts, asks, compares, stops."""
    address = free_address()
    url = f"http://{address}"
    request = json.loads(REQUEST.read_text())
    texts = request["inputs"][0]["data"]
    with tempfile.TemporaryDirectory(prefix="forebay-serve-demo-") as folder:
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "FOREBAY_DIR": folder, "FOREBAY_SERVE_SERVER_LISTEN": address, "PATH": path}
        environment |= {"FOREBAY_SERVE_LOG_LEVEL": "warn"}
        print(f"$ forebay serve --config {CONFIG.relative_to(ROOT)}", flush=True)
        begin = time.monotonic()
        server = subprocess.Popen([str(FOREBAY), "serve", "--config", str(CONFIG)], env=environment)
        try:
            until_ready(server, url)
            print(f"ready after {time.monotonic() - begin:.1f} s, model loaded\n")
            print(f"$ curl {url}/v2/models/embedder/infer -d @{REQUEST.relative_to(ROOT)}")
            tensor = ask(f"{url}/v2/models/embedder/infer", request)["outputs"][0]
            print(f'$ curl {url}/v1/embeddings -d \'{{"model": "embedder", "input": [...]}}\'')
            answer = ask(f"{url}/v1/embeddings", {"model": "embedder", "input": texts})
            print(f'$ curl {url}/predict -d \'{{"inputs": "{texts[0]}"}}\'\n')
            alone = ask(f"{url}/predict", {"inputs": texts[0]})["outputs"]["embedding"]
            server.send_signal(signal.SIGTERM)
            code = server.wait(PATIENCE_S)
        finally:
            server.kill()
            server.wait()
    rows = [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]
    for text, row in zip(texts, rows, strict=True):
        print(" ".join(f"{sum(a * b for a, b in zip(row, other, strict=True)):5.2f}" for other in rows), "", text)
    right = reference(texts)
    width = tensor["shape"][1]
    flat = tensor["data"]
    by_v2 = [flat[start : start + width] for start in range(0, len(flat), width)]
    off = max(
        abs(a - b)
        for row, other in zip([*by_v2, *rows, alone], [*right, *right, right[0]], strict=True)
        for a, b in zip(row, other, strict=True)
    )
    print(f"\n{len(rows)} embeddings of {len(rows[0])} numbers, off from transformers by {off:.1e} at most")
    wrong = []
    if not off <= TOLERANCE:
        wrong.append(f"the embeddings differ from the reference by {off}, at most {TOLERANCE} may be")
    if code:
        wrong.append(f"forebay serve ended with exit code {code} after SIGTERM")
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
