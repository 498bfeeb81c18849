"""A real HTTP server on loopback that speaks enough of an OpenAI-compatible API to be asked, and to
fail in every way.

    with LoopbackServer(answer=lambda body: "95", fault=lambda body, nth: "429" if nth == 0 else
    None) as server:
        Endpoint(server.url, "judge", ...)

`answer(body)` gives the text, or a whole `message`; `fault(body, nth)` names what goes wrong with
the nth request (0-based) of this very body, or None. Faults: a status such as `"429"` or `"500"`,
`"half json"`, `"wrong type"`, `"no choices"`, `"hang"` (until the server closes), `"drip"` (a byte
at a time), `"cut"` (the connection is reset), `"cut body"` (it ends inside the body).
`prompt_tokens(body)` is how long the server says the prompt was. `logprobs(body)` gives
[{token: logprob}, ...] where the request asks for log-probabilities; None leaves them out.
`echoes` writes what it was sent as a key into every field and header of every reply. `encoded`
compresses a body: (name of the content encoding, bytes).
"""

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Body = dict[str, Any]
NEVER: Callable[[Body, int], str | None] = lambda body, nth: None  # noqa: E731


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    loopback: "LoopbackServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is expected here."""


class LoopbackServer:
    def __init__(
        self,
        answer: Callable[[Body], str | dict[str, Any]] = lambda body: "ok",
        fault: Callable[[Body, int], str | None] = NEVER,
        logprobs: Callable[[Body], list[dict[str, float]] | None] = lambda body: None,
        *,
        refusal: str = "refused",
        headers: dict[str, str] | None = None,
        drip: float = 0.02,
        delay: float = 0.0,
        prompt_tokens: Callable[[Body], int] = lambda body: 10,
        echoes: bool = False,
        encoded: Callable[[bytes], tuple[str, bytes]] | None = None,
    ):
        self.echoes, self.encoded = echoes, encoded
        self.answer, self.fault, self.logprobs = answer, fault, logprobs
        self.refusal = refusal
        self.prompt_tokens = prompt_tokens
        self.headers, self.drip, self.delay = headers or {}, drip, delay
        self.bodies: list[Body] = []
        """Every request's body, repeated ones included, in order of arrival."""
        self.sent_headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._at_once = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.loopback = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def arrived(self, body: Body, headers: dict[str, str]) -> str | None:
        """Count a request; the fault it is to meet."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            key = json.dumps(body, sort_keys=True)
            nth = self._seen[key]
            self._seen[key] += 1
            self.bodies.append(body)
            self.sent_headers.append(headers)
            return self.fault(body, nth)

    def left(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # head and body are two writes: without this the second waits 40 ms for the client's receipt
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        world = self.server.loopback
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = world.arrived(body, dict(self.headers))
        try:
            world.closing.wait(world.delay) if world.delay else None
            if fault is None or fault in ("drip", "cut body", "half json", "wrong type"):
                self._reply(_completion(world, body), fault)
            elif fault == "hang":
                world.closing.wait()
            elif fault == "cut":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.close_connection = True
            elif fault == "no choices":
                self._reply({"object": "chat.completion"}, None)
            else:
                echoed = (
                    f"{world.refusal}: {self.headers.get('Authorization')}"  # servers do echo keys
                )
                self._reply({"error": {"message": echoed}}, None, int(fault))
        finally:
            world.left()

    def _reply(self, content: dict[str, Any], fault: str | None, status: int = 200) -> None:
        world = self.server.loopback
        data = json.dumps(content).encode()
        sent = str(self.headers.get("Authorization"))
        if world.echoes:
            data = json.dumps(_echoing(content, sent)).encode()
            # a letter may come as an escape, too
            data = data.replace(sent.encode(), sent.encode().replace(b"-", b"\\u002d"), 1)
        encoding = ""
        if world.encoded is not None:
            encoding, data = world.encoded(data)
        if fault == "half json":
            data = data[: len(data) // 2]
        self.send_response(status)
        self.send_header(
            "Content-Type",
            "text/html" if fault == "wrong type" else "application/json; charset=utf-8",
        )
        self.send_header("Content-Length", str(len(data)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if world.echoes:
            self.send_header("X-Request", sent)
        for name, value in world.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut body":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "drip":
            for byte in data:
                if world.closing.wait(world.drip):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        else:
            self.wfile.write(data)


def _echoing(value: Any, sent: str) -> Any:
    """The same JSON with a text added to every text and name, numbers and their names apart."""
    if isinstance(value, str):
        return f"{value} {sent}"
    if isinstance(value, list):
        return [_echoing(part, sent) for part in value]
    if isinstance(value, dict):
        echoing = {name: _echoing(part, sent) for name, part in value.items()}
        return {**echoing, sent: sent}
    return value


def _completion(world: LoopbackServer, body: Body) -> dict[str, Any]:
    answer = world.answer(body)
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "logprobs": None,
    }
    found = world.logprobs(body) if body.get("logprobs") else None
    if found is not None:
        choice["logprobs"] = {"content": [_token(candidates) for candidates in found]}
    prompt = world.prompt_tokens(body)
    usage = {"prompt_tokens": prompt, "completion_tokens": 2, "total_tokens": prompt + 2}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def _token(candidates: dict[str, float]) -> dict[str, Any]:
    top = [
        {"token": token, "logprob": value, "bytes": list(token.encode())}
        for token, value in candidates.items()
    ]
    return {**top[0], "top_logprobs": top}
