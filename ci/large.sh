#!/bin/sh
# What a large artifact costs, beside b3sum and `aws s3 cp` against moto, as JSON lines.
# Usage: ci/large.sh [GIGABYTES [FOLDER]]; 5 GB and a folder of its own below TMPDIR when left out.
# Needs b3sum (cargo install b3sum) and aws on the PATH, python3 with venv, and the network once.
set -eu
cd "$(dirname "$0")/.."
size=${1:-5}
work=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/large.XXXXXX")
home="${XDG_CACHE_HOME:-$HOME/.cache}/recipe/servers"
server=""
trap '[ -z "$server" ] || kill $server 2>/dev/null; rm -rf "$work"' EXIT INT TERM
cargo build --release --quiet -p cache --example large
large=$PWD/target/release/examples/large
[ -x "$home/python/bin/python" ] || python3 -m venv "$home/python"
[ -x "$home/python/bin/moto_server" ] || "$home/python/bin/pip" install --quiet 'moto[server]==5.1.*'
now() { date +%s.%N; }
said() { python3 -c 'import sys; what, size, a, b = sys.argv[1:]; s = float(b) - float(a); print("{\"what\":\"%s\",\"seconds\":%.3f,\"gb_per_s\":%.3f}" % (what, s, float(size) / s))' "$1" "$size" "$2" "$3"; }

python3 - "$work/file" "$size" <<'PY'
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
for round in 1 2 3; do
    a=$(now); b3sum "$work/file" >/dev/null; said "b3sum" "$a" "$(now)"
    "$large" hash "$work/file"
done

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$home/python/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/moto.log" 2>&1 &
server=$!
export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_EC2_METADATA_DISABLED=true
export XDG_CACHE_HOME="$work/cache"
until aws s3 mb s3://large >/dev/null 2>&1; do sleep 0.5; done
a=$(now); aws s3 cp --quiet "$work/file" s3://large/aws; said "aws s3 cp, up" "$a" "$(now)"
a=$(now); aws s3 cp --quiet s3://large/aws "$work/back"; said "aws s3 cp, down" "$a" "$(now)"
cmp "$work/file" "$work/back"
rm "$work/back"
aws s3 rm --quiet s3://large/aws
"$large" push "$work/file" s3://large/whole | tee "$work/push.log"
digest=$(sed -n 's/.*"digest":"\([0-9a-f]*\)".*/\1/p' "$work/push.log")
"$large" pull "$digest" s3://large/whole "$work/whole"
rm -rf "$work/whole"

# killed halfway, up and down
half() { # SECONDS COMMAND..: kills it
    seconds=$1; shift
    "$@" >/dev/null & killed=$!
    sleep "$seconds"; kill -9 $killed 2>/dev/null || echo '{"what":"it ended before the kill"}'
    wait $killed 2>/dev/null || true
}
seconds=$(sed -n 's/.*"what":"push".*"seconds":\([0-9.]*\).*/\1/p' "$work/push.log")
aws s3 rm --quiet --recursive s3://large/whole
rm -rf "$XDG_CACHE_HOME"
hashing=$(sed -n 's/.*"what":"hash before the push".*"seconds":\([0-9.]*\).*/\1/p' "$work/push.log")
half "$(python3 -c "print($hashing + $seconds / 2)")" "$large" push "$work/file" s3://large/half
echo '{"what":"a push killed halfway, again:"}'
"$large" push "$work/file" s3://large/half
half "$(python3 -c "print($seconds / 3)")" "$large" pull "$digest" s3://large/half "$work/half"
ls -l "$work"/half/store/local/partial 2>/dev/null | awk 'NR > 1 {print "{\"what\":\"left by the killed pull\",\"bytes\":" $5 "}"}'
echo '{"what":"a pull killed on the way, again:"}'
"$large" pull "$digest" s3://large/half "$work/half"
cmp "$work/file" "$work/half/store/blobs/$(printf %.2s "$digest")/$digest" && echo '{"what":"the same bytes"}'
