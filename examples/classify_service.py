"""`classify` behind a service: a picture is posted, its class, probabilities and uncertainties come back as JSON.

    python examples/classify_service.py demo-out/network --port 8000
    curl --data-binary @cell.png http://127.0.0.1:8000

One picture after another, on this machine only. Who opens it to others needs what this has not: encryption, a check of
who asks, and limits on how much. Not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from msf import MedSymmFlow
from msf.data import load_pictures

MOST_BYTES = 2**25
SECONDS = 30  # that a caller may be silent for


def make_server(run: str, port: int = 8000) -> HTTPServer:
    """Return a server on 127.0.0.1 for a trained network; `serve_forever()` starts it. Port 0: a free one."""
    flow = MedSymmFlow.from_pretrained(run)
    size, channels = flow.config.data.image_size, flow.task.image_channels

    class Service(BaseHTTPRequestHandler):
        timeout = SECONDS

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdecimal() and 0 < int(length) <= MOST_BYTES):
                self._answer(400, {"error": f"a picture of 1 to {MOST_BYTES} bytes is wanted, with its Content-Length"})
                return
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "picture"
                path.write_bytes(self.rfile.read(int(length)))
                loaded = load_pictures([path], size, channels)
            if loaded.failures:
                self._answer(400, {"error": loaded.failures[0].replace(repr(str(path)), "the body")})
                return
            prediction = flow.classify(loaded.images, value_range="signed")
            self._answer(200, prediction.to_records(flow.task.class_names)[0])

        def _answer(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer(("127.0.0.1", port), Service)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a trained network on 127.0.0.1.")
    parser.add_argument("run", help="folder of a trained network")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    with make_server(options.run, options.port) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
