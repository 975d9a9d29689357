#!/usr/bin/env python3
"""A local store with an S3 server (moto) behind it, through the command line: prints one JSON line per scene.

    ci/remote.py [--recipe FILE] [--seed 1]

| scene | what must come of it |
|---|---|
| push | a run sends what it publishes; `cache push` then finds all there |
| pull | another machine fetches everything with `cache pull` and then runs offline, its server gone: nothing is executed |
| through | a third runs: every result is reused, and only what is taken out is fetched |
| damage | a blob that is damaged here is fetched again, by `cache verify --repair --remote` |
| stumbles | a server that answers "slow down" or hangs up at every third request: the run ends well, by retries |
| gone | no server: the run says so with exit code 4, or goes on with --offline, and sends later what it could not |
| gc | on the server itself, `cache gc` takes nothing that is younger than a day, whatever it is told |
| secrets | the secret key is in no file, no record and no line that any of these printed |

The machines have homes, caches and scratch of their own.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

import tools

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECRET = "a-secret-that-nobody-may-tell"
STAGES = 8
RECIPE = """[recipe]
name = "remote"
schema = 1
"""
for i in range(STAGES):
    RECIPE += f"""[stage.s{i}]
kind = "command"
{f'in.x = "s{i - 1}.out"' if i % 4 else ""}
cmd = ["sh", "-c", "echo s{i} >> $LOG; (cat ${{IN_x:-/dev/null}}; yes {i} | head -c 200000) > $OUT_out"]
out = ["out"]
env = ["LOG"]
"""
RECIPE = RECIPE.replace("${IN_x", "$${IN_x")


class Stumbling(threading.Thread):
    """Passes connections on, but not every one: some are told to slow down, some are cut off."""

    def __init__(self, port, seed):
        super().__init__(daemon=True)
        self.to, self.rng, self.refused = port, random.Random(seed), 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self):
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(client, self.rng.random()), daemon=True).start()

    def serve(self, client, luck):
        try:
            if luck < 1 / 3:
                self.refused += 1
                client.recv(1 << 16)
                if luck < 1 / 6:
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return client.close()
            with socket.create_connection(("127.0.0.1", self.to)) as server:
                up = threading.Thread(target=pump, args=(client, server), daemon=True)
                up.start()
                pump(server, client)
        except OSError:
            pass  # one of the two hung up


def pump(a, b):
    try:
        while data := a.recv(1 << 16):
            # a connection carries one request, so that each can be refused
            b.sendall(data.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n", 1))
    except OSError:
        pass
    for end in (a, b):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Machine:
    said = ""

    def __init__(self, work, name, server, program):
        self.home, self.program = work / name, program
        (self.home / "tmp").mkdir(parents=True)
        (self.home / "recipe.toml").write_text(RECIPE)
        # one path for all machines: it is part of the stages' keys
        self.log = work / "log"
        self.log.touch()
        self.port(server)

    def port(self, port):
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "NO_COLOR": "1",
                    "LOG": str(self.log), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1",
                    "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": SECRET}

    def call(self, *args, code=0):
        """What a command printed; it must end with the exit code."""
        out = subprocess.run([self.program, *args], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=300)
        Machine.said += out.stdout + out.stderr
        if out.returncode != code:
            sys.exit(f"{' '.join(args)}: exit {out.returncode}, not {code}: {out.stdout[-500:]}{out.stderr[-1500:]}")
        return out.stdout if code == 0 else out.stderr

    def run(self, *args, code=0):
        return self.call("run", "recipe.toml", *args, code=code)

    def ran(self):
        """How many stages were executed since the last look."""
        count = len(self.log.read_text().split())
        self.log.write_text("")
        return count


def expect(scene, what, wanted):
    if what != wanted:
        sys.exit(f"{scene}: {what}, not {wanted}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    program = os.path.abspath(args.recipe)
    work = pathlib.Path(tempfile.mkdtemp(prefix="remote-"))
    tell = lambda **fields: print(json.dumps(fields), flush=True)
    url = ("--remote", "s3://bucket/store")
    try:
        with tools.Server() as server:
            one = Machine(work, "one", server.port, program)
            first = json.loads(one.run("--json", *url))
            outputs = {s["stage"]: s["outputs"] for s in first["stages"]}
            expect("push", one.ran(), STAGES)
            again = json.loads(one.call("cache", "push", "--json", *url))
            expect("push", (again["sent"], again["there"], again["busy"]), (0, STAGES, 0))
            tell(scene="push", executed=STAGES, found_there=again["there"])

            two = Machine(work, "two", server.port, program)
            pulled = json.loads(two.call("cache", "pull", "--json", *url))
            expect("pull", pulled["results"], STAGES)
            two.port(9)
            found = json.loads(two.run("--offline", "--json", *url))
            expect("pull", {s["stage"]: s["outputs"] for s in found["stages"]}, outputs)
            two.call("get", "recipe.toml", "s7.out", "--to", "got")
            two.call("cache", "verify", "--paranoid")
            expect("pull", two.ran(), 0)
            tell(scene="pull", fetched_bytes=pulled["bytes"], executed=0)

            three = Machine(work, "three", server.port, program)
            found = json.loads(three.run("--json", *url))
            expect("through", ({s["stage"]: s["outputs"] for s in found["stages"]}, three.ran()), (outputs, 0))
            three.env["RECIPE_REMOTE"] = url[1]
            three.call("get", "recipe.toml", "s7.out", "--to", "got")
            expect("through", (three.home / "got/data").read_bytes(), (two.home / "got/data").read_bytes())
            held = json.loads(three.call("cache", "stat", "--json"))
            bytes_here = sum(kind["bytes"] for kind in held["kinds"] if kind["kind"] == "blobs")
            if bytes_here >= pulled["bytes"]:
                sys.exit(f"through: {bytes_here} bytes were fetched, as much as everything")
            tell(scene="through", executed=0, blobs_here_bytes=bytes_here)

            blob = max((two.home / ".recipe/blobs").glob("*/*"), key=lambda blob: blob.stat().st_size)
            blob.chmod(0o644)
            blob.write_bytes(b"x" + blob.read_bytes()[1:])
            two.port(server.port)
            two.call("cache", "verify", "--paranoid", code=5)
            said = two.call("cache", "verify", "--paranoid", "--repair", *url)
            expect("damage", "fetched from the remote store" in said, True)
            tell(scene="damage", repaired=blob.name[:12])

            relay = Stumbling(server.port, args.seed)
            relay.start()
            four = Machine(work, "four", relay.port, program)
            # stages of its own, so that it sends as well as asks
            found = json.loads(four.run("--json", "--force", "--remote", "s3://bucket/stumbling"))
            expect("stumbles", ({s["stage"]: s["outputs"] for s in found["stages"]}, four.ran()), (outputs, STAGES))
            expect("stumbles", relay.refused > 10, True)
            four.port(server.port)
            there = json.loads(four.call("cache", "push", "--json", "--remote", "s3://bucket/stumbling"))
            expect("stumbles", (there["sent"], there["there"]), (0, STAGES))
            tell(scene="stumbles", seed=args.seed, refused=relay.refused)

            five = Machine(work, "five", 9, program)
            said = five.run(*url, code=4)
            expect("gone", "error[" in said and "panicked" not in said, True)
            five.ran()
            five.run("--offline")
            executed = five.ran()
            five.port(server.port)
            sent = json.loads(five.call("cache", "push", "--json", "--remote", "s3://bucket/five"))
            expect("gone", sent["sent"], STAGES)
            tell(scene="gone", executed_offline=executed, sent_later=sent["sent"])

            swept = json.loads(one.call("cache", "gc", "--json", "--older-than", "0h", "--store", url[1]))
            expect("gc", (swept["results"], swept["blobs"]["objects"]), (0, 0))
            tell(scene="gc", kept=swept["kept"]["objects"])

        told = [str(path) for path in work.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        expect("secrets", (told, SECRET in Machine.said), ([], False))
        tell(scene="secrets", files=sum(path.is_file() for path in work.rglob("*")), told=0)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
