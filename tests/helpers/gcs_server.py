"""Google Cloud Storage in memory: one bucket, and what gcsfs, Orbax and TensorStore ask of it.

with serve() as server:
    subprocess.run(command, env=os.environ | server.environment)
    server.blobs["run/config.json"]
"""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

BUCKET = "bucket"
PATH = re.compile(r"(/upload|/download|)/storage/v1/b/([^/]+)(?:(/o)(?:/([^/]+))?)?")
DATE = "2026-01-01T00:00:00.000Z"


class Blob(NamedTuple):
    """An object, as written at one time."""

    data: bytes
    generation: int


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status, message=""):
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Holds the objects of the bucket by their names."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs = {}
        self.lock = threading.Lock()
        self._generation = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self):
        """What makes a process use this server, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def handle_error(self, request, client_address):
        """Says nothing: clients hang up when an answer is of no use any more."""

    def write(self, name, data):
        """Writes an object."""
        self._generation += 1
        self.blobs[name] = Blob(data, self._generation)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def handle_request(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.server.lock:
                status, data, headers = self.answer()
        except RefusedError as refusal:
            status, headers = refusal.status, {}
            data = {"error": {"code": status, "message": str(refusal)}}
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        # One packet: of two, the second would wait for the client to acknowledge the first.
        self._headers_buffer.append(b"\r\n" + data)
        self.flush_headers()

    # The names are http.server's.
    do_GET = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def answer(self):
        """Status, body and headers."""
        url = urlsplit(self.path)
        query, match = dict(parse_qsl(url.query)), PATH.fullmatch(url.path)
        if not match:
            raise RefusedError(501, f"{self.command} {self.path} is not known here")
        kind, bucket, objects, name = match.groups()
        if bucket != BUCKET:
            raise RefusedError(404, "The specified bucket does not exist.")
        if kind == "/upload":
            return self.upload(query)
        if not objects:
            return 200, {"name": BUCKET}, {}
        if not name:
            return 200, self.listing(**query), {}
        name = unquote(name)
        if name not in self.server.blobs:
            raise RefusedError(404, f"No such object: {BUCKET}/{name}")
        if self.command == "DELETE":
            del self.server.blobs[name]
            return 204, b"", {}
        if query.get("alt") == "media":
            return self.download(self.server.blobs[name], query)
        return 200, self.metadata(name), {}

    def metadata(self, name):
        blob = self.server.blobs[name]
        return {
            **{"kind": "storage#object", "bucket": BUCKET, "name": name},
            **{"size": str(len(blob.data)), "generation": str(blob.generation)},
            **{"metageneration": "1", "timeCreated": DATE, "updated": DATE},
            "mediaLink": f"{self.server.url}/download/storage/v1/b/{BUCKET}/o/"
            f"{quote(name, safe='')}?alt=media",
        }

    def listing(self, prefix="", delimiter="", **_):
        """Objects whose name goes on without the delimiter, and prefixes up to it."""
        items, prefixes = [], set()
        for name in sorted(self.server.blobs):
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
                else:
                    items.append(self.metadata(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def download(self, blob, query):
        if query.get("ifGenerationNotMatch") == str(blob.generation):
            return 304, b"", {}
        headers = {"x-goog-generation": blob.generation}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return 200, blob.data, headers
        size = len(blob.data)
        start = int(span[1]) if span[1] else max(0, size - int(span[2]))
        stop = min(size, int(span[2]) + 1) if span[1] and span[2] else size
        if start >= size:
            raise RefusedError(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, blob.data[start:stop], headers

    def upload(self, query):
        """Writes an object whole: in one request, or in one after that which announces it."""
        name = query["name"]
        if query["uploadType"] == "resumable" and "upload_id" not in query:
            return 200, {}, {"Location": f"{self.server.url}{self.path}&upload_id=1"}
        total = re.fullmatch(r"bytes .*/(\d+)", self.headers.get("Content-Range", ""))
        if total and int(total[1]) != len(self.body):
            raise RefusedError(501, "an upload in parts is not known here")
        old = self.server.blobs.get(name, Blob(b"", 0))
        if int(query.get("ifGenerationMatch", old.generation)) != old.generation:
            raise RefusedError(412, "The object has changed.")
        self.server.write(name, self.body)
        return 200, self.metadata(name), {}


@contextlib.contextmanager
def serve():
    """A server with an empty bucket, as long as the context lasts."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
