#!/bin/sh
# Runs the store's tests against an S3 server as well: moto from PyPI, in a folder of its own.
# Usage: ci/s3.sh [cargo test arguments]. Needs python3 with venv, and the network once.
set -eu
cd "$(dirname "$0")/.."
home="${XDG_CACHE_HOME:-$HOME/.cache}/recipe/moto"
if [ ! -x "$home/bin/moto_server" ]; then
    echo "installing moto[server] 5.1 in $home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet 'moto[server]==5.1.*'
fi
log=$(mktemp)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$home/bin/moto_server" -H 127.0.0.1 -p "$port" >"$log" 2>&1 &
server=$!
trap 'kill $server; rm -f "$log"' EXIT INT TERM
export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
python3 - <<'PY'
import os, time, urllib.request
url = os.environ["AWS_ENDPOINT_URL"] + "/recipe-test"
for attempt in range(100):
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"))
        break
    except OSError:
        time.sleep(0.2)
else:
    raise SystemExit("the S3 server does not answer at " + url)
PY
RECIPE_TEST_S3=s3://recipe-test/store cargo test --release -p cache "$@"
