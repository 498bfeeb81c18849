"""Serve the runs of a folder to this machine's own browser: list, compare, open.

Only loopback addresses are bound, and a request that names another host is refused, so that a page
elsewhere cannot reach the server through a name of its own. Every address holds a secret, since
other users of the machine share loopback. No file is sent as it lies on disk: addresses name runs,
not paths, and every page is made from a result whose checksum fits. Nothing is written.
"""

import hmac
import ipaddress
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from emlens.foundation.errors import EmlensError, InputError
from emlens.foundation.files import one_line, sha256_text
from emlens.report import runs_pages
from emlens.report.found_runs import Run, find_runs, open_run
from emlens.report.page import policy, render
from emlens.results import StudyResult
from emlens.studies.comparing import compare_results

LOOPBACK: Final = "127.0.0.1"
PAGES_KEPT: Final = 4
"""Reports in memory, about 8 MB each."""
MOST_BESIDE: Final = 12
"""Runs beside each other."""
MOST_ADDRESS: Final = 2_000
SECONDS_FOR_A_REQUEST: Final = 30
_log = logging.getLogger("emlens")


class _Refused(Exception):
    """What is answered instead of a page."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class RunServer(ThreadingHTTPServer):
    """A server of the runs below a folder; `serve_forever` runs it, `address` is where.

    Args:
        folder: is looked through anew for each page.
        host: a loopback address or `localhost`. port: 0 takes one that is free.

    Raises:
        InputError: no such folder, a host that is not this machine's loopback, a port that is
            taken or is none.
    """

    daemon_threads = True

    def __init__(self, folder: str | Path, host: str = LOOPBACK, port: int = 0):
        find_runs(folder)
        self.folder = Path(folder).resolve()
        self.secret = secrets.token_urlsafe(16)
        self._reports: OrderedDict[str, bytes] = OrderedDict()
        self._rendering = threading.Lock()
        try:
            super().__init__((_loopback(host), port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={port}: cannot be listened on ({error}); pass a free port, or 0 for any"
            ) from None

    @property
    def address(self) -> str:
        """The address of the list, with its secret."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.secret}/"

    def page(self, name: str, runs: Sequence[str]) -> tuple[bytes, str]:
        """A page and its content security policy.

        Args:
            name: of the page. runs: ids that the address names.
        """
        runs_here = find_runs(self.folder)
        if name == "":
            return runs_pages.list_page(self.folder.name, runs_here).encode(), runs_pages.POLICY
        chosen = [_by_id(runs_here.runs, run) for run in runs]
        if name == "run" and len(chosen) == 1:
            result = open_run(self.folder, chosen[0])
            return self._report(result), policy()
        if name == "compare":
            return self._beside(chosen), runs_pages.POLICY
        if name == "difference" and len(chosen) == 2:
            first, second = (open_run(self.folder, run) for run in chosen)
            return self._report(compare_results(first, second, anyway=True)), policy()
        raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _beside(self, chosen: Sequence[Run]) -> bytes:
        if not 2 <= len(chosen) <= MOST_BESIDE:
            raise _Refused(
                HTTPStatus.BAD_REQUEST,
                f"Select 2 to {MOST_BESIDE} runs; {len(chosen)} were selected.",
            )
        results = [open_run(self.folder, run) for run in chosen]
        return runs_pages.beside_page(chosen, results).encode()

    def _report(self, result: StudyResult) -> bytes:
        """The report of a result, made once as long as it is among the last that were asked for."""
        key = sha256_text(repr((result.config, result.findings, result.run, result.facts)))
        with self._rendering:
            if key not in self._reports:
                self._reports[key] = render(result).encode("utf-8", "backslashreplace")
            self._reports.move_to_end(key)
            while len(self._reports) > PAGES_KEPT:
                self._reports.popitem(last=False)
            return self._reports[key]


def _loopback(host: str) -> str:
    """The address to bind.

    Raises:
        InputError: a host that other machines could reach.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InputError(
            f"host={one_line(repr(host), 60)}: runs are served to this machine alone; pass"
            f" {LOOPBACK}, and from another machine use: ssh -L PORT:{LOOPBACK}:PORT THIS_MACHINE"
        )
    return LOOPBACK


def _by_id(runs: Sequence[Run], asked: str) -> Run:
    for run in runs:
        if run.id == asked and run.can_open:
            return run
    raise _Refused(HTTPStatus.NOT_FOUND, "There is no such run, or it has no result.")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; every answer says that it is one page, for this reader, not to keep."""

    server: RunServer
    server_version = "emlens"
    sys_version = ""
    timeout = SECONDS_FOR_A_REQUEST

    def do_GET(self) -> None:
        status, policy_of_page = HTTPStatus.OK, runs_pages.POLICY
        try:
            body, policy_of_page = self._page()
        except _Refused as refused:
            status, body = refused.status, self._message(str(refused))
        except EmlensError as error:
            status = HTTPStatus.CONFLICT
            body = self._message(one_line(str(error).replace(f"{self.server.folder}/", ""), 600))
        self._send(status, body, policy_of_page)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._send(
            HTTPStatus.METHOD_NOT_ALLOWED, self._message("Nothing can be written."), "", "GET, HEAD"
        )

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _page(self) -> tuple[bytes, str]:
        if self.headers.get("Host") not in self._own_names():
            raise _Refused(
                HTTPStatus.MISDIRECTED_REQUEST, "This server answers to its own address alone."
            )
        if len(self.path) > MOST_ADDRESS:
            raise _Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long.")
        parts = urlsplit(self.path)
        _, secret, *rest = [*parts.path.split("/"), ""][:3]
        is_known = hmac.compare_digest(secret.encode(), self.server.secret.encode())
        if not is_known or parts.path.count("/") != 2:
            raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        query = parse_qs(parts.query)
        return self.server.page(rest[0], [*query.get("run", []), *query.get("id", [])])

    def _own_names(self) -> tuple[str, ...]:
        port = self.server.server_port
        return f"{LOOPBACK}:{port}", f"localhost:{port}"

    def _message(self, text: str) -> bytes:
        return runs_pages.message_page("Not shown", text).encode()

    def _send(self, status: HTTPStatus, body: bytes, policy_of_page: str, allow: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy_of_page or runs_pages.POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        if allow:
            headers["Allow"] = allow
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Into the library's log, without the secret and without control characters."""
        text = (format % args).replace(self.server.secret, "…")
        _log.debug("view: %s", one_line(text))
