"""Many clients of one engine: each creates, starts, waits for and removes containers, for a while.

    python -m benchmark.crowd SOCKET SECONDS CLIENTS

Prints the number of whole cycles. Any answer that is not the expected one ends it with an error.
It speaks HTTP with as little as it takes, since it shares the machine with what it measures.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

_BODY = json.dumps(
    {
        "Image": "busybox",
        "Cmd": ["true"],
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "json-file"}},
    }
).encode()


class _Connection:
    """A connection that is kept from call to call."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(120)
        self._socket.connect(path)
        self._rest = b""

    def call(self, method: str, path: str, expected: int, body: bytes = b"") -> bytes:
        """One call; its body. Raises RuntimeError for another status than the expected one."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        self._socket.sendall(head.encode() + b"\r\n" + body)
        while b"\r\n\r\n" not in self._rest:
            self._more()
        answer, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        lowered = answer.lower()
        if b"transfer-encoding: chunked" in lowered:
            content = self._chunks()
        elif b"content-length: " in lowered:
            size = int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(self._rest) < size:
                self._more()
            content, self._rest = self._rest[:size], self._rest[size:]
        else:
            content = b""
        if status != expected:
            raise RuntimeError(f"{method} {path}: {status}: {content[:300]!r}")
        return content

    def _chunks(self) -> bytes:
        content = b""
        while True:
            while b"\r\n" not in self._rest:
                self._more()
            line, _, self._rest = self._rest.partition(b"\r\n")
            size = int(line, 16)
            while len(self._rest) < size + 2:
                self._more()
            content += self._rest[:size]
            self._rest = self._rest[size + 2 :]
            if not size:
                return content

    def _more(self) -> None:
        part = self._socket.recv(65536)
        if not part:
            raise RuntimeError("the engine closed the connection")
        self._rest += part


def main() -> int:
    path, seconds, clients = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    deadline = time.monotonic() + seconds
    cycles = [0] * clients
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            connection = _Connection(path)
            while time.monotonic() < deadline and not failures:
                made = json.loads(connection.call("POST", "/containers/create", 201, _BODY))["Id"]
                connection.call("POST", f"/containers/{made}/start", 204)
                ended = json.loads(connection.call("POST", f"/containers/{made}/wait", 200))
                if ended["StatusCode"]:
                    raise RuntimeError(f"{made} ended with {ended}")
                connection.call("DELETE", f"/containers/{made}", 204)
                cycles[number] += 1
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 1
    print(sum(cycles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
