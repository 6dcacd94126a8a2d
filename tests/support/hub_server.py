"""A server on the loopback in place of the Hugging Face Hub, with the files of its repositories."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

COMMIT = "0" * 40


def use_hub(patch: pytest.MonkeyPatch, port: int) -> None:
    """Let the hub's client ask a server on the loopback."""
    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    url = f"http://127.0.0.1:{port}" + template[template.index("/{repo_id}") :]
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[int]:
    """Serve files, by the end of their address, and yield the port; any other file does not exist."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def content(self) -> bytes | None:
            return next((content for name, content in files.items() if self.path.endswith(f"/{name}")), None)

        def do_HEAD(self) -> None:
            content = self.content()
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
            else:
                self.send_response(200)
                for key, value in {"X-Repo-Commit": COMMIT, "ETag": f'"{len(content)}"'}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(self.content() or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
