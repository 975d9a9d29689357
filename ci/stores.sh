#!/bin/sh
# The store's tests on real servers: moto (S3) and gcp-storage-emulator (with ci/gcs.py) from PyPI, Azurite from npm.
# Usage: ci/stores.sh [s3|azure|gcs].. [-- cargo test arguments]; all three when none is named.
# Needs python3 with venv, node for Azurite, and the network once. Prints one line per server.
set -eu
cd "$(dirname "$0")/.."
home="${XDG_CACHE_HOME:-$HOME/.cache}/recipe/servers"
kinds=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do kinds="$kinds $1"; shift; done
[ $# -eq 0 ] || shift
[ -n "$kinds" ] || kinds="s3 azure gcs"
mkdir -p "$home"
work=$(mktemp -d)
servers=""
trap 'kill $servers 2>/dev/null; rm -rf "$work"' EXIT INT TERM

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
pip() {
    [ -x "$home/python/bin/python" ] || python3 -m venv "$home/python"
    [ -x "$home/python/bin/$1" ] || "$home/python/bin/pip" install --quiet "$2"
}
# ask METHOD URL: until the server answers
ask() {
    python3 - "$@" <<'PY'
import sys, time, urllib.error, urllib.request
method, url = sys.argv[1:]
for attempt in range(150):
    try:
        urllib.request.urlopen(urllib.request.Request(url, method=method))
        break
    except urllib.error.HTTPError as error:
        if error.code == 409: break
        if error.code < 500: raise SystemExit(f"{method} {url}: {error} {error.read()}")
    except OSError:
        pass
    time.sleep(0.2)
else:
    raise SystemExit("the server does not answer at " + url)
PY
}

for kind in $kinds; do
    at=$(port)
    case $kind in
    s3)
        pip moto_server 'moto[server]==5.1.*'
        "$home/python/bin/moto_server" -H 127.0.0.1 -p "$at" >"$work/s3.log" 2>&1 &
        servers="$servers $!"
        export AWS_ENDPOINT_URL="http://127.0.0.1:$at" AWS_REGION=us-east-1
        export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
        ask PUT "$AWS_ENDPOINT_URL/recipe-test"
        url=s3://recipe-test/store
        ;;
    azure)
        [ -x "$home/azure/node_modules/.bin/azurite-blob" ] ||
            npm install --silent --no-fund --no-audit --prefix "$home/azure" azurite@3
        "$home/azure/node_modules/.bin/azurite-blob" --silent --skipApiVersionCheck --inMemoryPersistence \
            --blobHost 127.0.0.1 --blobPort "$at" >"$work/azure.log" 2>&1 &
        servers="$servers $!"
        # the emulator's account and key are public; object_store knows them
        export AZURE_STORAGE_USE_EMULATOR=1 AZURITE_BLOB_STORAGE_URL="http://127.0.0.1:$at"
        python3 - "$AZURITE_BLOB_STORAGE_URL" <<'PY'
import base64, datetime, hashlib, hmac, sys, time, urllib.error, urllib.request
account = "devstoreaccount1"
key = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-12-02\n/{account}/{account}/recipe-test\nrestype:container"
sign = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
for attempt in range(150):
    try:
        request = urllib.request.Request(f"{sys.argv[1]}/{account}/recipe-test?restype=container", method="PUT")
        for name, value in {"x-ms-date": date, "x-ms-version": "2021-12-02", "Authorization": f"SharedKey {account}:{sign}"}.items():
            request.add_header(name, value)
        urllib.request.urlopen(request)
        break
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error} {error.read()}")
    except OSError:
        time.sleep(0.2)
else:
    raise SystemExit("Azurite does not answer at " + sys.argv[1])
PY
        url=az://recipe-test/store
        ;;
    gcs)
        pip gcp-storage-emulator gcp-storage-emulator==2026.7.19
        "$home/python/bin/python" ci/gcs.py "$at" >"$work/gcs.log" 2>&1 &
        servers="$servers $!"
        printf '{"gcs_base_url": "http://127.0.0.1:%s", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}' "$at" >"$work/gcs.json"
        export GOOGLE_SERVICE_ACCOUNT="$work/gcs.json"
        ask GET "http://127.0.0.1:$at/storage/v1/b"
        url=gs://recipe-test/store
        ;;
    *)
        echo "ci/stores.sh knows s3, azure and gcs, not '$kind'" >&2
        exit 2
        ;;
    esac
    echo "== $kind: $url on port $at"
    failed=""
    RECIPE_TEST_STORES=$url cargo test --release -p cache --features conformance --test conformance || failed=conformance
    RECIPE_TEST_STORES=$url cargo test --release -p cache --features conformance --test main "$@" || failed="$failed store"
    echo "== $kind: ${failed:-all passed}"
    [ -z "$failed" ] || { tail -5 "$work/$kind.log"; wrong="${wrong:-} $kind"; }
done
[ -z "${wrong:-}" ] || { echo "failed on$wrong"; exit 1; }
