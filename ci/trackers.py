#!/usr/bin/env python3
"""What trackers wrote, read back by the packages that own the formats; prints one JSON line per check.

    ci/trackers.py [--recipe FILE] [--steps N] [--seed N]

| check | reader |
|---|---|
| tensorboard | TensorBoard's EventAccumulator: scalars of every step, hyperparameters |
| wandb | `wandb sync` of the offline runs to a local server that speaks as much of W&B's API as it asks for |
| mlflow | MlflowClient, from an `mlflow server` that is killed in the middle of the run and comes back |
| jsonl | the lines |
| away | the same run with a server that hangs, and with none: how much longer it takes, what it says, and its bits |

A scripted worker logs random values under names with `/`, `@` and dots, and NaN among them. It needs python3 with pip;
the packages are installed in a folder of the user's cache.
"""

import argparse
import glob
import gzip
import http.server
import json
import math
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "recipe" / "trackers"
PACKAGES = ["tensorboard==2.21.*", "wandb==0.31.*", "mlflow==3.17.*"]

WORKER = r'''#!/usr/bin/env python3
import json, math, os, random, sys, time
if sys.argv[1] == "identity":
    print(json.dumps({"version": "0", "libtorch": "none", "sources": "s"})); sys.exit()
job = json.load(open(sys.argv[3]))
say = lambda **event: print(json.dumps(event).replace("NaN", "null"), flush=True)
steps, seed = job["with"]["steps"], job["with"]["seed"]
say(event="started", version=1, device="cpu", numerics={"device": "cpu"})
for step in range(1, steps + 1):
    say(event="progress", step=step, total=steps)
    say(event="metrics", step=step, metrics=values(seed, step))
    time.sleep(float("@PAUSE@"))
while os.path.exists("@HOLD@"):
    time.sleep(0.1)
open(job["outputs"]["model"] + "/weights", "w").write(f"{steps} {seed}")
say(event="finished", metrics={"accuracy": seed / 7, "pass@4": 0.25})
'''
VALUES = '''
def values(seed, step):
    import math, random
    r = random.Random(seed * 100003 + step)
    all = {"train/loss": r.gauss(0, 1), "train/reward": r.random() * 1e-9, "data.rows/é": float(step * 10**9)}
    if step % 5 == 0:
        all["train/grad_norm"] = math.nan
    return all
'''
exec(VALUES)
RECIPE = """
[recipe]
name = "tracked"
schema = 1
[source.base]
path = "base"
[source.chat]
path = "chat.jsonl"
[stage.sft]
kind = "sft"
in = {{ model = "source.base", data = "source.chat" }}
with = {{ steps = {steps}, lr = 1e-3, seed = {seed} }}
[stage.dpo]
kind = "dpo"
in = {{ model = "sft.model", data = "source.chat" }}
with = {{ steps = 40, lr = 1e-4, seed = {seed2} }}
"""


def packages():
    """The python that has the readers; this program goes on in it."""
    python = HOME / "bin" / "python"
    done = HOME / "installed"
    if not done.exists() or done.read_text() != " ".join(PACKAGES):
        print(f"installing {', '.join(PACKAGES)} in {HOME}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
        subprocess.run([HOME / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
        done.write_text(" ".join(PACKAGES))
    if pathlib.Path(sys.prefix) != HOME:
        os.execv(python, [python, *sys.argv])


class Project:
    def __init__(self, program, steps, seed, tables, pause=0.002):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="trackers-"))
        self.program, self.stages = program, {"sft": (seed, steps), "dpo": (seed + 1, 40)}
        (self.dir / "base").mkdir()
        (self.dir / "base/config.json").write_text("{}")
        (self.dir / "chat.jsonl").write_text('{"messages": []}\n')
        (self.dir / "recipe.toml").write_text(RECIPE.format(steps=steps, seed=seed, seed2=seed + 1) + tables)
        worker = self.dir / "worker"
        worker.write_text(WORKER.replace("@PAUSE@", str(pause)).replace("@HOLD@", str(self.dir / "hold"))
                          .replace("job = json", VALUES + "job = json", 1))
        worker.chmod(0o755)

    def start(self, *args, **variables):
        environment = dict(os.environ, RECIPE_WORKER=str(self.dir / "worker"), **variables)
        return subprocess.Popen([self.program, "run", "recipe.toml", "--json", *args], cwd=self.dir, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *args, **variables):
        begun = time.monotonic()
        process = self.start(*args, **variables)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return json.loads(out), err, time.monotonic() - begun

    def expected(self, stage):
        seed, steps = self.stages[stage]
        return {step: values(seed, step) for step in range(1, steps + 1)}


def same(a, b, single=False):
    """Equal numbers; in single precision where the format has no more."""
    if single and math.isfinite(b):
        b = struct.unpack("f", struct.pack("f", b))[0]
    return a == b or (math.isnan(a) and math.isnan(b))


def told(check, **what):
    print(json.dumps({"check": check, **what}), flush=True)


def tensorboard(project, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    count = 0
    for stage in project.stages:
        (folder,) = glob.glob(str(project.dir / "tensorboard" / run / stage))
        read = EventAccumulator(folder, size_guidance={"scalars": 0})
        read.Reload()
        wanted = {(name, step): value for step, all in project.expected(stage).items() for name, value in all.items()}
        for name in read.Tags()["scalars"]:
            for event in read.Scalars(name):
                if name in ("accuracy", "pass@4"):
                    assert same(event.value, {"accuracy": project.stages[stage][0] / 7, "pass@4": 0.25}[name], True)
                    continue
                assert same(event.value, wanted.pop((name, event.step)), True), (stage, name, event)
                count += 1
        assert not wanted, (stage, list(wanted)[:3])
        plugin = read.SummaryMetadata("_hparams_/session_start_info").plugin_data
        data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
        hparams = data.session_start_info.hparams
        assert hparams["lr"].number_value == {"sft": 1e-3, "dpo": 1e-4}[stage]
        assert data.session_start_info.group_name == run
        plugin = read.SummaryMetadata("_hparams_/session_end_info").plugin_data
        assert plugin_data_pb2.HParamsPluginData.FromString(plugin.content).session_end_info.status == 1
    told("tensorboard", values=count, stages=len(project.stages))


class Wandb(http.server.BaseHTTPRequestHandler):
    """As much of a W&B server as `wandb sync` asks: keeps runs, their history and their summary."""
    protocol_version = "HTTP/1.1"
    runs, history, summary, exits = {}, {}, {}, {}

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # wandb hangs up when it has what it wanted

    def do_PUT(self):
        self.content()
        self.answer({})

    def do_POST(self):
        content = self.content()
        if not self.path.startswith(("/graphql", "/files/")):
            return self.answer({})
        asked = json.loads(content or b"{}")
        if self.path == "/graphql":
            variables, query = asked.get("variables") or {}, asked["query"]
            if "upsertBucket" in query:
                known = self.runs.setdefault(variables["name"], {})
                known.update({k: v for k, v in variables.items() if v is not None})
                project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
                bucket = {"id": "b", "name": variables["name"], "displayName": known.get("displayName"),
                          "description": "", "config": "{}", "sweepName": None, "project": project,
                          "historyLineCount": 0}
                return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
            if "createRunFiles" in query:
                at = f"http://127.0.0.1:{self.server.server_port}/upload"
                files = [{"name": name, "uploadUrl": at} for name in variables["files"]]
                return self.answer({"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}})
            return self.answer({"data": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}",
                                                    "teams": {"edges": []}},
                                         "serverInfo": {"features": [], "cliVersionInfo": {}}}})
        if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            run = match[1]
            files = asked.get("files") or {}
            part = files.get("wandb-history.jsonl", {"content": []})
            self.history.setdefault(run, []).extend(json.loads(line) for line in part["content"])
            for line in files.get("wandb-summary.json", {"content": []})["content"]:
                self.summary.setdefault(run, {}).update(json.loads(line))
            if asked.get("complete"):
                self.exits[run] = asked.get("exitcode")
        self.answer({"exitcode": None, "limits": {}})

    do_GET = do_PUT

    def content(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def wandb(project, run):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wandb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folders = sorted(glob.glob(str(project.dir / "wandb" / "offline-run-*")))
    assert len(folders) == 2, folders
    environment = dict(os.environ, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}", WANDB_API_KEY="0" * 40,
                       WANDB_ERROR_REPORTING="false")
    for folder in folders:
        out = subprocess.run([HOME / "bin/wandb", "sync", folder], env=environment, cwd=project.dir, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        assert out.returncode == 0, out.stdout
    server.shutdown()
    count = 0
    number = lambda v: math.nan if v == "NaN" else float(v)
    for id, known in Wandb.runs.items():
        stage = known["displayName"]
        assert known["groupName"] == run and known["project"] == "tracked", known
        config = json.loads(known["config"])
        assert config["lr"]["value"] == {"sft": 1e-3, "dpo": 1e-4}[stage], config
        wanted = project.expected(stage)
        for row in Wandb.history[id]:
            for name, value in wanted.pop(row["_step"]).items():
                assert same(number(row[name]), value), (stage, name, row)
                count += 1
        assert not wanted, (stage, list(wanted)[:3])
        assert Wandb.summary[id]["accuracy"] == project.stages[stage][0] / 7, Wandb.summary[id]
        assert Wandb.exits[id] == 0
    told("wandb", values=count, runs=len(Wandb.runs))


class Mlflow:
    def __init__(self, dir):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.dir = dir

    def start(self):
        self.process = subprocess.Popen(
            [HOME / "bin/mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{self.dir}/mlflow.db", "--artifacts-destination", f"{self.dir}/files"],
            cwd=self.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(1800):
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as s:
                    s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if b" 200 " in s.recv(200):
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit("the MLflow server does not answer")

    def stop(self):
        os.killpg(self.process.pid, 9)
        self.process.wait()


def mlflow(program, steps, seed):
    from mlflow import MlflowClient
    dir = pathlib.Path(tempfile.mkdtemp(prefix="trackers-mlflow-"))
    server = Mlflow(dir)
    project = Project(program, steps, seed, f'[track.mlflow]\nuri = "http://127.0.0.1:{server.port}"\nexperiment = "ci"\n',
                      pause=max(0.005, 8 / steps))
    # stages do not end before the server is back
    (project.dir / "hold").write_text("")
    server.start()
    process = project.start()
    time.sleep(4)
    server.stop()
    time.sleep(4)
    server.start()
    # the next try comes within a minute
    client = MlflowClient(f"http://127.0.0.1:{server.port}")
    for _ in range(120):
        found = client.get_experiment_by_name("ci")
        if found and any(r.data.metrics for r in client.search_runs([found.experiment_id])):
            break
        time.sleep(1)
    (project.dir / "hold").unlink()
    out, err = process.communicate()
    assert process.returncode == 0 and "tracker" not in err, err
    run = json.loads(out)["run"]
    experiment = client.get_experiment_by_name("ci").experiment_id
    runs = {r.data.tags.get("recipe.stage", ""): r for r in client.search_runs([experiment])}
    assert set(runs) == {"", "sft", "dpo"}, runs
    count = 0
    for stage in project.stages:
        found = runs[stage]
        assert found.info.status == "FINISHED" and found.data.tags["mlflow.parentRunId"] == runs[""].info.run_id
        assert found.data.params["lr"] == {"sft": "0.001", "dpo": "0.0001"}[stage]
        assert found.data.metrics["accuracy"] == project.stages[stage][0] / 7
        assert found.data.metrics["pass_at_4"] == 0.25
        names = {"train/loss", "train/reward", "data.rows/é", "train/grad_norm"}
        for name in names:
            history = {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)}
            wanted = {step: all[name] for step, all in project.expected(stage).items() if name in all}
            assert set(history) == set(wanted), (stage, name, len(history), len(wanted))
            assert all(same(history[step], value) for step, value in wanted.items()), (stage, name)
            count += len(history)
    assert runs[""].info.status == "FINISHED" and run in runs[""].info.run_name
    server.stop()
    told("mlflow", values=count, runs=len(runs), server="killed in the middle, started again")


def jsonl(project, run):
    lines = [json.loads(line) for line in (project.dir / "metrics.jsonl").read_text().splitlines()]
    count = 0
    for stage in project.stages:
        wanted = project.expected(stage)
        for line in (line for line in lines if line["stage"] == stage and "step" in line):
            assert line["run"] == run
            for name, value in wanted.pop(line["step"]).items():
                assert same(math.nan if line["metrics"][name] is None else line["metrics"][name], value)
                count += 1
        assert not wanted
    told("jsonl", values=count)


def away(program, seed):
    """A server that hangs, and none, against no tracker: time, words, bits."""
    silent = socket.create_server(("127.0.0.1", 0))
    held = []
    def accept():
        while True:
            held.append(silent.accept())
    threading.Thread(target=accept, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    seconds, bits, words = {}, set(), {}
    for name, port in (("none", None), ("hangs", silent.getsockname()[1]), ("refuses", closed)):
        tables = f'[track.mlflow]\nuri = "http://127.0.0.1:{port}"\n' if port else ""
        project = Project(program, 2000, seed, tables)
        outcome, err, seconds[name] = project.run()
        bits.add(json.dumps([s["outputs"] for s in outcome["stages"]]))
        steps = {s["stage"]: s["seconds"] for s in outcome["stages"]}
        words[name] = [line for line in err.splitlines() if "tracker" in line]
        seconds[name + ", stages alone"] = sum(steps.values())
    assert len(bits) == 1
    assert not words["none"] and len(words["hangs"]) == 1 and len(words["refuses"]) == 1, words
    told("away", seconds={k: round(v, 2) for k, v in seconds.items()}, said=words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=ROOT / "target/release/recipe")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000))
    args = parser.parse_args()
    packages()
    program = pathlib.Path(args.recipe).resolve()
    told("seed", seed=args.seed, steps=args.steps)
    project = Project(program, args.steps, args.seed, "[track.jsonl]\n[track.tensorboard]\n[track.wandb]\n")
    outcome, err, _ = project.run()
    assert "tracker" not in err, err
    for check in (jsonl, tensorboard, wandb):
        check(project, outcome["run"])
    mlflow(program, args.steps, args.seed)
    away(program, args.seed)


if __name__ == "__main__":
    main()
