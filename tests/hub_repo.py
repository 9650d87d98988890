"""Repositories of the Hugging Face hub without the hub: in the local cache, or served by a local process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


def cache_repo(cache: Path, repo: str, files: Mapping[str, Path]) -> Path:
    """Puts files into a hub cache the way huggingface_hub lays it out; returns the snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, file in files.items():
        (snapshot / name).symlink_to(file)
    return snapshot


@contextmanager
def hub_server(repos: Mapping[str, Path]) -> Iterator[str]:
    """Serves folders as repositories of a hub, as far as huggingface_hub's downloads ask; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            for repo, folder in repos.items():
                files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
                api, resolve = f"/api/models/{repo}", f"/{repo}/resolve/"
                if path.startswith(f"{api}/tree/"):
                    return self._send(
                        json.dumps([{"type": "file", "path": name, "size": 1, "oid": name} for name in files])
                    )
                if path.startswith(api):
                    siblings = [{"rfilename": name} for name in files]
                    return self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}))
                if path.startswith(resolve):
                    name = path.removeprefix(resolve).split("/", 1)[1]
                    if name in files:
                        return self._send((folder / name).read_bytes(), with_body, etag=name.replace("/", "-"))
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
            self.end_headers()

        def _send(self, content: str | bytes, with_body: bool = True, etag: str = "list") -> None:
            body = content.encode() if isinstance(content, str) else content
            self.send_response(200)
            for name, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
