"""A loopback server that speaks the Hugging Face hub's protocol, with the faults of a real one.

Large files lie elsewhere, as on the hub: `resolve` names their size and hash and redirects to
another host name. Every request is kept, with the bytes that its answer took.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".onnx")  # what git-lfs keeps
CHUNK = 1 << 14
REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
ROUTES = [(re.compile(pattern), action) for pattern, action in (
    (rf"/api/{REPOSITORY}(?:/revision/(?P<revision>[^/]+))?", "info"),
    (rf"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    (rf"/api/{REPOSITORY}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
     "resolve"),
    (rf"/content/{REPOSITORY}/(?P<revision>[^/]+)/(?P<path>.+)", "content"),
)]


@dataclass
class Repository:
    """The files of one repository at its only commit, and who may read them."""

    files: dict[str, bytes]
    gated: bool = False

    @property
    def commit(self) -> str:
        """Forty hexadecimal digits that follow from the files."""
        digest = hashlib.sha1(b"".join(path.encode() + hashlib.sha256(content).digest()
                                       for path, content in sorted(self.files.items())))
        return digest.hexdigest()

    def entry(self, path: str) -> dict:
        """A file as the tree lists it."""
        content = self.files[path]
        known = {"type": "file", "path": path, "size": len(content), "oid": etag("", content)}
        if path.endswith(LARGE):
            known["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
        return known

    def sibling(self, path: str) -> dict:
        """What the list of all files says of one, beside its path."""
        entry = self.entry(path)
        lfs = {"lfs": entry["lfs"] | {"sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
        return {"size": entry["size"], "blobId": entry["oid"]} | lfs

    def tree(self, under: str, recursive: bool) -> list[dict]:
        """The files in a folder, and its folders."""
        start = f"{under}/" if under else ""
        inside = [path for path in sorted(self.files) if path.startswith(start)]
        folders = {path[:at] for path in inside for at in range(len(start), len(path))
                   if path[at] == "/"}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": etag("", path.encode())}
                   for path in sorted(folders)] + [self.entry(path) for path in inside]
        return [e for e in entries if recursive or "/" not in e["path"][len(start):]]


@dataclass
class Fault:
    """What goes wrong with the first `times` requests whose method and path contain `where`."""

    where: str
    times: int = 1
    status: int = 0  # answered in place of the content
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # bytes of the body after which the connection ends
    reset: bool = False  # it ends by a reset and not in good order
    stall_s: float = 0.0  # pause before each piece of the body
    hang_up: bool = False  # no answer at all


@dataclass
class Request:
    """A request that was answered; `file` is the one whose content was sent, if any."""

    line: str
    status: int = 0
    file: str = ""
    sent: int = 0  # bytes of the body


class Hub(ThreadingHTTPServer):
    """The server; `with Hub(repositories) as hub` runs it and ends it.

    Args:
        repositories: by kind and name, for example "models/stabilityai/sd-turbo".
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.requests = repositories, list[Request]()
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> Counter[str]:
        """Bytes of content sent, by repository and file."""
        return sum((Counter({r.file: r.sent}) for r in list(self.requests) if r.file), Counter())

    def lines(self, part: str = "") -> list[str]:
        """The request lines that contain a text."""
        return [r.line for r in list(self.requests) if part in r.line]

    def take_fault(self, line: str) -> Fault | None:
        """The fault that this request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.where in line and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error of the server."""


def etag(path: str, content: bytes) -> str:
    """SHA-256 of a large file; of a small one git's own hash."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.form = parse_qs(self.rfile.read(length).decode())
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.request_log = Request(f"{self.command} {self.path}")
        self.fault = self.server.take_fault(self.request_log.line) or Fault("", 0)
        try:
            if self.fault.hang_up:
                self.close_connection = True
            elif self.fault.status:
                self.refuse(self.fault.status, "", "out of order", self.fault.headers)
            else:
                self.route(unquote(parts.path))
        finally:
            self.server.requests.append(self.request_log)

    do_HEAD = do_POST = do_GET

    def route(self, path: str) -> None:
        found = next(((m.groupdict(), action) for pattern, action in ROUTES
                      if (m := pattern.fullmatch(path))), None)
        if found is None:
            return self.refuse(404, "", f"no route for {path}")
        asked, action = found
        kind = (asked["kind"] or "models").strip("/")
        self.home = f"{kind}/{asked['name']}"
        self.repository = self.server.repositories.get(self.home)
        if self.repository is None:  # the hub hides from strangers what is not there
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if (asked.get("revision") or "main") not in ("main", self.repository.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {asked['revision']}")
        if action in ("resolve", "content"):
            if self.repository.gated:
                return self.refuse(403, "GatedRepo", f"Access to {self.home} is restricted")
            if asked["path"] not in self.repository.files:
                return self.refuse(404, "EntryNotFound", "Entry not found")
        return getattr(self, action)(asked.get("path") or "")

    def info(self, _: str) -> None:
        files = [{"rfilename": path} | (self.repository.sibling(path) if "blobs" in self.query
                                        else {}) for path in sorted(self.repository.files)]
        self.answer_json({"id": self.home.split("/", 1)[1], "sha": self.repository.commit,
                          "private": False, "gated": "manual" if self.repository.gated else False,
                          "disabled": False, "tags": [], "siblings": files, "downloads": 0,
                          "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z"})

    def tree(self, path: str) -> None:
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = self.repository.tree(path, recursive)
        if path and not entries:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist")
        return self.answer_json(entries)

    def paths_info(self, _: str) -> None:
        everything = {e["path"]: e for e in self.repository.tree("", recursive=True)}
        self.answer_json([everything[p] for p in self.form.get("paths", ()) if p in everything])

    def resolve(self, path: str) -> None:
        content, commit = self.repository.files[path], self.repository.commit
        known = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return self.send_content(path, known)
        known |= {"X-Linked-Size": str(len(content)),
                  "X-Linked-Etag": f'"{etag(path, content)}"',
                  "Location": f"http://localhost:{self.server.server_port}/content/"
                              f"{self.home}/{commit}/{path}"}
        return self.answer(302, b"", known)

    def content(self, path: str) -> None:
        self.send_content(path, {"Accept-Ranges": "bytes"})

    def send_content(self, path: str, headers: dict[str, str]) -> None:
        content = self.repository.files[path]
        headers = headers | {"ETag": f'"{etag(path, content)}"'}
        self.request_log.file = f"{self.home}/{path}"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.request_log.line += f" {first}-{last}"
        return self.answer(206, memoryview(content)[first:last + 1], headers)

    def refuse(self, status: int, code: str, message: str,
               headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, {"Content-Type": "application/json"} | named | (headers or {}))

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes | memoryview, headers: dict[str, str]) -> None:
        self.request_log.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)

    def send_body(self, body: bytes | memoryview) -> None:
        end = len(body) if self.fault.cut_at is None else min(self.fault.cut_at, len(body))
        for first in range(0, end, CHUNK):
            time.sleep(self.fault.stall_s)
            piece = body[first:min(first + CHUNK, end)]
            self.wfile.write(piece)
            self.request_log.sent += len(piece)
        if end < len(body):
            self.close_connection = True
            if self.fault.reset:  # closing with this option sends RST
                time.sleep(0.2)  # let what was sent arrive
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                           struct.pack("ii", 1, 0))
                self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal: the requests are kept."""
