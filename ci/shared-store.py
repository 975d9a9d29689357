#!/usr/bin/env python3
"""Two runners that share nothing but an S3 server (moto): prints what each did, one JSON line per scene.

    ci/shared-store.py [--recipe FILE]

| scene | what must come of it |
|---|---|
| at once | every stage once; the slower waits and takes over what the faster published |
| killed | the first dies in a stage (SIGKILL): the second seals its attempt after the time to live, and computes it |
| asleep | the first is stopped before it publishes (SIGSTOP), the second takes over, the first comes back (SIGCONT): it cannot publish, and ends with the other's result |

The runners have homes, caches and scratch of their own, as two machines have.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tools

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = """[recipe]
name = "shared"
schema = 1
[stage.slow]
kind = "command"
cmd = ["sh", "-c", "echo slow >> $LOG; sleep 1; date +%N > $OUT_out"]
out = ["out"]
env = ["LOG"]
"""
for i in range(6):
    above = "slow.out" if i < 3 else f"s{i - 3}.out"
    RECIPE += f"""[stage.s{i}]
kind = "command"
in.x = "{above}"
cmd = ["sh", "-c", "echo s{i} >> $LOG; (cat $IN_x; echo {i}) > $OUT_out"]
out = ["out"]
env = ["LOG"]
"""
TTL = 3


class Scene:
    def __init__(self, server, program, name):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shared-"))
        self.server, self.program, self.name = server, program, name
        self.log = self.folder / "log"

    def start(self, machine, **variables):
        home = self.folder / machine
        (home / "tmp").mkdir(parents=True)
        (home / "recipe.toml").write_text(RECIPE)
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "LOG": str(self.log), "NO_COLOR": "1",
               "RECIPE_CLAIM_TTL": f"{TTL}s", **self.server.environment(), **variables}
        command = [self.program, "run", "recipe.toml", "--store", f"s3://bucket/{self.name}", "--json"]
        return subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, process, said):
        """What a runner that must succeed came to, by stage."""
        out, err = process.communicate(timeout=120)
        if process.returncode != 0:
            sys.exit(f"{self.name}: exit {process.returncode}: {err}")
        for text in said:
            if text not in err:
                sys.exit(f"{self.name}: nobody said '{text}': {err}")
        stages = {s["stage"]: s for s in json.loads(out)["stages"]}
        self.outputs = {name: s["outputs"] for name, s in stages.items()}
        return {name: f"{s['status']} as attempt {s['attempt']}" for name, s in stages.items()}

    def tell(self, expected, **fields):
        ran = collections.Counter(self.log.read_text().split())
        wrong = {n: c for n, c in ran.items() if c != expected.get(n, 1)}
        if wrong or len(ran) != 7:
            sys.exit(f"{self.name}: executions {dict(ran)}")
        print(json.dumps({"scene": self.name, "executions": dict(sorted(ran.items())), **fields}), flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def state(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "target/release/recipe"))
    program = os.path.abspath(parser.parse_args().recipe)
    with tools.Server() as server:
        scene = Scene(server, program, "at-once")
        a, b = scene.start("one"), scene.start("two")
        first = scene.end(a, [])
        outputs = scene.outputs
        second = scene.end(b, [])
        if outputs != scene.outputs:
            sys.exit("two runners have different outputs")
        scene.tell({}, one=first, two=second)

        scene = Scene(server, program, "killed")
        a = scene.start("one", RECIPE_FAULT="launched:1")
        a.wait(60)
        start = time.monotonic()
        second = scene.end(scene.start("two"), ["taking over"])
        if second["slow"] != "ran as attempt 2":
            sys.exit(f"killed: {second}")
        scene.tell({"slow": scene.log.read_text().split().count("slow")}, one=f"killed ({a.returncode})", two=second,
                   seconds=round(time.monotonic() - start, 1), ttl=TTL)

        scene = Scene(server, program, "asleep")
        a = scene.start("one", RECIPE_FAULT="ingested:1:stop")
        while state(a.pid) != "T":
            time.sleep(0.05)
        second = scene.end(scene.start("two"), ["taking over"])
        outputs = scene.outputs
        a.send_signal(signal.SIGCONT)
        first = scene.end(a, ["was taken over"])
        if outputs != scene.outputs or first["slow"] != "adopted as attempt 2":
            sys.exit(f"asleep: {first}")
        scene.tell({"slow": 2}, one=first, two=second)


if __name__ == "__main__":
    main()
