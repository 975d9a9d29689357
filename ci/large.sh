#!/bin/sh
# What a large artifact costs, beside b3sum and `aws s3 cp` on one S3 server, as JSON lines.
# Usage: ci/large.sh [GIGABYTES [ROUNDS [FOLDER]]]; 5 GB and three rounds when left out, and fetched files beside the others
# below TMPDIR.
# The server is s3s-fs (crates.io), which keeps objects as files: moto, in Python, would be what is measured.
# Needs python3 with venv, and the network once, for s3s-fs, b3sum and aws; room for three times the size.
set -eu
cd "$(dirname "$0")/.."
size=${1:-5} rounds=${2:-3}
home="${XDG_CACHE_HOME:-$HOME/.cache}/recipe/servers"
python="$home/aws/bin/python"
[ -x "$home/cargo/bin/b3sum" ] || cargo install --quiet --root "$home/cargo" b3sum@1.8.2
[ -x "$home/cargo/bin/s3s-fs" ] || cargo install --quiet --root "$home/cargo" s3s-fs@0.14.1 --features binary
# of its own: it wants another botocore than moto does
[ -x "$home/aws/bin/aws" ] || { python3 -m venv "$home/aws" && "$home/aws/bin/pip" install --quiet 'awscli==1.45.*'; }
cargo build --release --quiet -p cache --example large
large=$PWD/target/release/examples/large
export PATH="$home/cargo/bin:$home/aws/bin:$PATH"

work=$(mktemp -d)
server=""
to=$(mktemp -d ${3:+-p "$3"})
trap '[ -z "$server" ] || kill $server 2>/dev/null; rm -rf "$work" "$to"' EXIT INT TERM
now() { date +%s.%N; }
# said WHAT BEGAN: a line with seconds and rate
said() { "$python" -c 'import sys, time; s = time.time() - float(sys.argv[2]); print("{\"what\":\"%s\",\"seconds\":%.3f,\"gb_per_s\":%.3f}" % (sys.argv[1], s, float(sys.argv[3]) / s))' "$1" "$2" "$size"; }
# field NAME OF: the number of a field in the last line of the log that says it
field() { sed -n "s/.*\"what\":\"$2\".*\"$1\":\([0-9.]*\).*/\1/p" "$work/log" | tail -1; }

"$python" - "$work/file" "$size" <<'PY'
import random, sys
rng = random.Random(5)
with open(sys.argv[1], "wb") as file:
    left = int(float(sys.argv[2]) * 10**9)
    while left:
        n = min(left, 16 << 20)
        file.write(rng.randbytes(n))
        left -= n
PY
sync
cat "$work/file" >/dev/null
for round in $(seq "$rounds"); do
    a=$(now); b3sum "$work/file" >/dev/null; said "b3sum" "$a"
    "$large" hash "$work/file"
done

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$work/server"
s3s-fs --host 127.0.0.1 --port "$port" --access-key test --secret-key secret "$work/server" >"$work/server.log" 2>&1 &
server=$!
export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=secret AWS_EC2_METADATA_DISABLED=true
export XDG_CACHE_HOME="$work/cache"
tries=0
until aws s3 mb s3://large >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || { cat "$work/server.log" >&2; exit 1; }
    sleep 0.2
done
# turn by turn, so that both meet the same disk; each copy is removed before the next is made
for round in $(seq "$rounds"); do
    a=$(now); aws s3 cp --quiet "$work/file" s3://large/aws; said "aws s3 cp, up" "$a"
    a=$(now); aws s3 cp --quiet s3://large/aws "$to/back"; said "aws s3 cp, down" "$a"
    [ $round != 1 ] || cmp "$work/file" "$to/back"
    rm "$to/back"
    aws s3 rm --quiet s3://large/aws
    rm -rf "$XDG_CACHE_HOME"
    "$large" push "$work/file" s3://large/whole | tee -a "$work/log"
    digest=$(sed -n 's/.*"digest":"\([0-9a-f]*\)".*/\1/p' "$work/log" | tail -1)
    "$large" pull "$digest" s3://large/whole "$to/whole" | tee -a "$work/log"
    rm -rf "$to/whole"
    aws s3 rm --quiet --recursive s3://large/whole
done

# killed on the way, up and down; at the end of a push the server puts the parts together
cut() { # SECONDS COMMAND..: kills it
    seconds=$1; shift
    "$@" >/dev/null & killed=$!
    sleep "$seconds"
    kill -9 $killed 2>/dev/null || echo '{"what":"it ended before the kill"}'
    wait $killed 2>/dev/null || true
}
middle() { "$python" -c 'import sys; a, b, c = map(float, sys.argv[1:]); print(a + b * c)' "$@"; }
rm -rf "$XDG_CACHE_HOME"
cut "$(middle "$(field seconds 'hash before the push')" "$(field seconds push)" 0.3)" "$large" push "$work/file" s3://large/half
echo '{"what":"a push killed on the way, again:"}'
"$large" push "$work/file" s3://large/half
cut "$(middle 0 "$(field seconds 'pull, verified and stored')" 0.4)" "$large" pull "$digest" s3://large/half "$to/half"
ls -l "$to"/half/store/local/partial 2>/dev/null | awk 'NR > 1 {print "{\"what\":\"left by the killed pull\",\"bytes\":" $5 "}"}'
echo '{"what":"a pull killed on the way, again:"}'
"$large" pull "$digest" s3://large/half "$to/half"
cmp "$work/file" "$to/half/store/blobs/$(printf %.2s "$digest")/$digest" && echo '{"what":"the same bytes"}'
