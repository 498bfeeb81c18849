"""No test reaches beyond loopback: shown by trying."""

import os
import socket

import pytest

# 192.0.2.0/24 and 2001:db8::/32 are reserved for documentation: nothing answers there.
OUTSIDE = [
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET6, "2001:db8::1"),
    (socket.AF_INET, "example.invalid"),
]


@pytest.mark.parametrize("how", ["connect", "connect_ex"])
@pytest.mark.parametrize(("family", "host"), OUTSIDE)
def test_connections_outside_are_refused(family: int, host: str, how: str) -> None:
    with (
        socket.socket(family, socket.SOCK_STREAM) as outside,
        pytest.raises(RuntimeError, match="connect to nothing but loopback"),
    ):
        getattr(outside, how)((host, 80))


def test_datagrams_outside_are_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
        pytest.raises(RuntimeError, match="connect to nothing but loopback"),
    ):
        outside.sendto(b"x", ("192.0.2.1", 53))


def test_names_outside_are_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"look up example\.invalid"):
        socket.create_connection(("example.invalid", 80), timeout=1)


def test_loopback_works() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        client.sendall(b"hello")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"


def test_model_hubs_are_switched_off_for_child_processes() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["TRANSFORMERS_OFFLINE"] == "1"
