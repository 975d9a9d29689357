#!/usr/bin/env python3
"""What `recipe` writes for other programs, checked by those programs' own validators.

    ci/validators.py [--recipe target/release/recipe] [--keep DIR]

| written by | checked by |
|---|---|
| run/show --junit | Jenkins' junit-10.xsd (from pytest's source package), junitparser |
| get (models) | in-toto-attestation: the statement, and SLSA provenance v1 as its predicate; sha256sum of each subject |
| get (exported models) | huggingface_hub: the card's eval results; safetensors' and config's files as they were |
| archive | rocrate-validator: RO-Crate 1.1, Process Run Crate, Workflow Run Crate |
| schema | taplo (npm) on every shipped recipe, and on a bad one |
| ci/examples | check-jsonschema: GitHub's and GitLab's schemas |

Needs recipe and recipe-worker beside each other, python3 with venv, npm for taplo, and a package index. It
makes a virtual environment below target/. Prints a line for each check; ends with 1 if one fails.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = [
    "roc-validator==0.13.0",
    "rocrate==0.13.0",
    "in-toto-attestation==0.9.3",
    "huggingface_hub==2.4.0",
    "junitparser==5.0.3",
    "lxml==6.1.3",
    "check-jsonschema==0.39.0",
]
PYTEST = "pytest==8.3.4"  # its source package has the schema of JUnit files
TAPLO = "@taplo/cli@0.7.0"

RECIPE = """
[recipe]
name = "validated"
schema = 1
[source.rows]
adopted = "{rows}"
[stage.base]
kind = "init"
with = {{ family = "qwen3", hidden_size = 32, intermediate_size = 64, layers = 1, heads = 2, tokenizer = "byte" }}
[stage.sft]
kind = "sft"
in = {{ model = "base.model", data = "source.rows" }}
with = {{ steps = 2, batch_size = 4, max_length = 64 }}
[stage.eval]
kind = "evaluate"
in.model = "sft.model"
with = {{ environment = "addition", examples = 8, max_tokens = 4 }}
[[stage.eval.assert]]
metric = "accuracy"
min = 0.0
[[stage.eval.assert]]
metric = "accuracy"
min = {bound}
[stage.export]
kind = "export"
in.model = "sft.model"
[stage.bad]
kind = "command"
in.x = "eval.report"
cmd = ["sh", "-c", "echo 'a<b>&' >&2; exit 9"]
out = ["y"]
[stage.after]
kind = "command"
in.x = "bad.y"
cmd = ["true"]
out = ["z"]
"""

failed = []


def report(name, problem):
    print(f"{'FAIL' if problem else 'ok  '}  {name}{': ' + str(problem) if problem else ''}", flush=True)
    if problem:
        failed.append(name)


def check(name, body):
    """Runs a check; what it returns or raises is the problem."""
    try:
        report(name, body())
    except Exception as e:  # a validator's own way to refuse
        report(name, f"{type(e).__name__}: {e}")


def venv():
    """Runs this script again in a virtual environment that has the validators."""
    place = ROOT / "target" / "validators"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    schema = place / "junit-10.xsd"
    if not schema.exists():
        with tempfile.TemporaryDirectory() as scratch:
            get = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PYTEST, "-d", scratch]
            subprocess.run(get, check=True)
            (archive,) = pathlib.Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                member = next(m for m in tar if m.name.endswith("junit-10.xsd"))
                schema.write_bytes(tar.extractfile(member).read())
    if pathlib.Path(sys.prefix) != place:
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    return place


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=pathlib.Path, default=ROOT / "target/release/recipe")
    parser.add_argument("--keep", type=pathlib.Path, help="keep what is checked in this folder")
    args = parser.parse_args()
    place = venv()
    binary = args.recipe.resolve()
    work = args.keep or pathlib.Path(tempfile.mkdtemp(prefix="recipe-validators-"))
    work.mkdir(parents=True, exist_ok=True)

    def recipe(*words, code=0):
        done = subprocess.run([binary, *map(str, words)], cwd=work, capture_output=True, text=True)
        if done.returncode != code:
            sys.exit(f"recipe {' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    rows = work / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(20)))
    (work / "recipe.lock").write_text("")
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    adopted = recipe("adopt", rows, "--by", "a <person>", "--from", "https://example.org/rows", "--why", "a test",
                     "--sha256", digest, "--json")
    adopted = json.loads(adopted)["digest"]

    # a stage fails; then an assertion as well
    for name, bound, code in [("stage-fails", 0.0, 1), ("both-fail", 1.5, 1)]:
        (work / "recipe.toml").write_text(RECIPE.format(rows=adopted, bound=bound))
        recipe("run", "recipe.toml", "--device", "cpu", "--keep-going", "--junit", f"{name}.xml",
               "--summary", f"{name}.md", code=code)
    recipe("run", "recipe.toml", "sft", "--device", "cpu", "--junit", "few.xml")
    (work / "wrong.toml").write_text("[recipe]\n")
    recipe("check", "wrong.toml", code=2)
    recipe("run", "wrong.toml", "--junit", "refused.xml", code=2)
    recipe("show", "last", "--junit", "record.xml")
    for name in ["stage-fails", "both-fail", "few", "refused", "record"]:
        check(f"JUnit: {name}", lambda: junit(work / f"{name}.xml", place / "junit-10.xsd"))

    recipe("get", "recipe.toml", "export.model", "--to", "model")
    check("in-toto and SLSA", lambda: statement(work / "model"))
    check("Hugging Face card", lambda: card(work / "model"))
    runs = [json.loads(line)["id"] for line in recipe("runs", "--json").splitlines()]
    recipe("archive", runs[1], "--to", "crate", "--with", "export.model", "--with", "eval.report",
           "--license", "https://spdx.org/licenses/CC0-1.0")
    for profile in ["ro-crate-1.1", "process-run-crate", "workflow-run-crate"]:
        check(f"RO-Crate: {profile}", lambda: crate(place, work / "crate", profile))

    (work / "schema.json").write_text(recipe("schema"))
    check("taplo", lambda: taplo(work))
    for name, arguments in [
        ("github-actions.yml", ["vendor.github-workflows"]),
        ("gitlab-ci.yml", ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
    ]:
        check(f"ci/examples/{name}", lambda: run([place / "bin/check-jsonschema", "--builtin-schema", *arguments,
                                                  ROOT / "ci/examples" / name]))
    if not args.keep:
        shutil.rmtree(work)
    print(f"{len(failed)} failed" if failed else "all passed")
    return 1 if failed else 0


def run(command):
    """None, or what a failing command printed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()[-3000:] or done.returncode


def junit(file, schema):
    import junitparser
    from lxml import etree

    etree.XMLSchema(etree.parse(schema)).assertValid(etree.parse(file))
    read = junitparser.JUnitXml.fromfile(str(file))
    told = (read.tests, read.failures, read.errors)
    read.update_statistics()
    if told != (read.tests, read.failures, read.errors):
        return f"counts {told} are not those of its cases"
    if read.tests == 0:
        return "no tests"


def statement(model):
    import in_toto_attestation.predicates.provenance.v1.provenance_pb2 as provenance
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement

    text = json.loads((model / "provenance.intoto.json").read_text())
    whole = json_format.ParseDict(text, __import__("in_toto_attestation.v1.statement_pb2", fromlist=["x"]).Statement())
    checked = Statement.copy_from_pb(whole)
    checked.validate()
    if text["predicateType"] != "https://slsa.dev/provenance/v1":
        return text["predicateType"]
    # refuses fields that SLSA does not have, and values of other types
    json_format.ParseDict(text["predicate"], provenance.Provenance())
    files = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()} - {"provenance.intoto.json"}
    if files != {s["name"] for s in text["subject"]}:
        return f"subjects are not the files: {files}"
    for subject in text["subject"]:
        if hashlib.sha256((model / subject["name"]).read_bytes()).hexdigest() != subject["digest"]["sha256"]:
            return f"sha256 of {subject['name']}"
    adopted = [d for d in text["predicate"]["buildDefinition"]["resolvedDependencies"] if d["name"] == "source.rows"]
    if adopted[0]["annotations"]["adopted"]["by"] != "a <person>":
        return "the statement of who adopted the rows is not in it"


def card(model):
    from huggingface_hub import ModelCard

    found = ModelCard.load(model / "README.md")
    results = found.data.eval_results
    if not results:
        return "no evaluation results"
    one = next(r for r in results if r.metric_type == "accuracy" and r.dataset_type == "addition")
    if not 0.0 <= one.metric_value <= 1.0 or one.task_type != "text-generation":
        return one
    if found.data.library_name != "transformers":
        return found.data


# The validator reads RO-Crate's context from the net, in two ways; ro-crate-py's package has it.
VALIDATOR = """
import email, io, pathlib, sys, urllib.request, urllib.response
import requests, rocrate, urllib3
from rocrate_validator.cli import cli
URL = "https://w3id.org/ro/crate/1.1/context"
context = (pathlib.Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_bytes()
kind = {"Content-Type": "application/ld+json"}
class Here(urllib.request.HTTPSHandler):
    def https_open(self, request):
        if request.full_url != URL:
            return super().https_open(request)
        headers = email.message_from_string("Content-Type: application/ld+json")
        answer = urllib.response.addinfourl(io.BytesIO(context), headers, URL, 200)
        answer.msg = "OK"
        return answer
urllib.request.install_opener(urllib.request.build_opener(Here))
send = requests.adapters.HTTPAdapter.send
def here(self, request, **more):
    if request.url != URL:
        return send(self, request, **more)
    raw = urllib3.HTTPResponse(io.BytesIO(context), kind, 200, preload_content=False)
    return self.build_response(request, raw)
requests.adapters.HTTPAdapter.send = here
sys.exit(cli())
"""


def crate(place, folder, profile):
    return run([place / "bin/python", "-c", VALIDATOR, "--disable-color", "validate", "--profile-identifier", profile,
                "--requirement-severity", "REQUIRED", "--no-paging", folder])


def taplo(work):
    if not shutil.which("npm"):
        return "npm is not installed"
    schema = (work / "schema.json").as_uri()
    lint = ["npx", "--yes", TAPLO, "lint", "--schema", schema]
    shipped = [*ROOT.glob("recipes/*.toml"), *ROOT.glob("recipes/ci/*.toml"), work / "recipe.toml"]
    problem = run([*lint, *shipped])
    if problem:
        return problem
    bad = ROOT / "tests/golden/errors/unknown-setting/recipe.toml"
    return None if run([*lint, bad]) else f"{bad} was accepted"


if __name__ == "__main__":
    sys.exit(main())
