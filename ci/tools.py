"""Programs of others for the scripts of this folder: tools from PyPI, an S3 server (moto), a relay that counts what passes."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

HOME = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "recipe" / "bench-runner"


def install(tool, package):
    """A program of a PyPI package, installed in a folder of its own where it is not yet."""
    program = HOME / "bin" / tool
    if not program.exists():
        if not (HOME / "bin" / "pip").exists():
            subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        print(f"installing {package} in {HOME}", file=sys.stderr)
        subprocess.run([HOME / "bin" / "pip", "install", "--quiet", package], check=True)
    return program


class Server:
    """moto with one bucket, on a port of its own; ends with the `with` block."""

    def __enter__(self):
        program = install("moto_server", "moto[server]==5.1.*")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(self.port)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        request = b"PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as s:
                    s.sendall(request)
                    if b" 200 " in s.recv(200):
                        return self
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit("the S3 server does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def environment(self, port=None):
        """What a client needs to find it."""
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}", "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ALLOW_HTTP": "true"}


class Relay(threading.Thread):
    """Passes TCP connections on and counts: requests by their first lines, and bytes."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.to, self.requests, self.sent, self.received, self.lock = port, {}, 0, 0, threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self):
        while True:
            client, _ = self.socket.accept()
            server = socket.create_connection(("127.0.0.1", self.to))
            for a, b, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.pump, args=(a, b, up), daemon=True).start()

    def pump(self, a, b, up):
        try:
            while data := a.recv(1 << 16):
                self.count(data, up)
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of the two hung up

    def count(self, data, up):
        with self.lock:
            if not up:
                self.received += len(data)
                return
            self.sent += len(data)
            # a request's first line starts a segment: clients here do not pipeline
            words = data[:2048].split(b"\r\n", 1)[0].split(b" ")
            if len(words) == 3 and words[2].startswith(b"HTTP/"):
                kind = "LIST" if b"list-type" in words[1] else words[0].decode()
                self.requests[kind] = self.requests.get(kind, 0) + 1

    def reset(self):
        with self.lock:
            self.requests, self.sent, self.received = {}, 0, 0
