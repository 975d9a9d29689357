#!/usr/bin/env python3
"""gcp-storage-emulator (PyPI) with the calls of Google's XML API that it lacks, which are those object_store makes.

    ci/gcs.py PORT          # on 127.0.0.1, in memory, with the bucket recipe-test

Buckets, objects, generations, checksums and the JSON API are the emulator's. Added here, as Google's reference for the
XML API describes them: a page of a bucket's list (list-type=2), HEAD and DELETE of an object, preconditions on
generation, ETag and time, byte ranges, old generations, copies, and uploads in parts. What the reference leaves open is not guessed at
but held against object_store's own conformance suite by ci/stores.sh.
"""

import email.utils
import hashlib
import re
import sys
import threading
import uuid
from datetime import datetime
from functools import partial
from http import HTTPStatus, server as http
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

BUCKET = "recipe-test"
PAGE = 1000
# one request at a time looks at objects and changes them: a precondition holds until its write
LOCK = threading.RLock()
UPLOADS = {}  # id -> (object's name, {part number: bytes})
OLD = {}  # (bucket, name, generation) -> (object, bytes): the bucket keeps what was written over


class Refused(Exception):
    """An error of the XML API: its status, and its code in the body."""

    def __init__(self, status, code):
        self.status, self.code = status, code


def handler(function):
    def handle(request, response, storage):
        body = server._read_raw_data(request._request_handler) or b""
        names = request.params
        try:
            with LOCK:
                if names["bucket_name"] not in storage.buckets:
                    raise Refused(HTTPStatus.NOT_FOUND, "NoSuchBucket")
                function(request, response, storage, names["bucket_name"], names.get("object_id"), body)
        except Refused as refused:
            response.status = refused.status
            if refused.status != HTTPStatus.NOT_MODIFIED:
                xml(response, f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>")
    return handle


def xml(response, text):
    response.write_file(f"<?xml version='1.0' encoding='UTF-8'?>{text}".encode(), content_type="application/xml; charset=UTF-8")


def asked(request, name):
    return request.query.get(name, [None])[0]


def found(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)
    except NotFound:
        return None


def etag(obj):
    return f'"{obj["etag"]}"'


def modified(obj):
    return datetime.fromisoformat(obj["updated"].replace("Z", "+00:00"))


def describe(response, obj):
    response["ETag"] = etag(obj)
    response["x-goog-generation"] = obj["generation"]
    response["Last-Modified"] = email.utils.format_datetime(modified(obj).replace(microsecond=0), usegmt=True)


def only_if(request, there, reading=False):
    """Refuses what a precondition forbids; `there` is the object, or nothing."""
    generation = request.get_header("x-goog-if-generation-match")
    if generation is not None and generation != (there["generation"] if there else "0"):
        raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
    if not reading or not there:
        return
    match, other = request.get_header("If-Match"), request.get_header("If-None-Match")
    tags = lambda header: [tag.strip() for tag in header.split(",")]
    moment = lambda name: email.utils.parsedate_to_datetime(request.get_header(name))
    whole = modified(there).replace(microsecond=0)
    if match and not {"*", etag(there)} & set(tags(match)):
        raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
    if not match and request.get_header("If-Unmodified-Since") and whole > moment("If-Unmodified-Since"):
        raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
    if other and {"*", etag(there)} & set(tags(other)):
        raise Refused(HTTPStatus.NOT_MODIFIED, "NotModified")
    if not other and request.get_header("If-Modified-Since") and whole <= moment("If-Modified-Since"):
        raise Refused(HTTPStatus.NOT_MODIFIED, "NotModified")


def store(request, storage, bucket, name, content):
    obj = objects._make_object_resource(request.base_url, bucket, name, request.get_header("Content-Type"), str(len(content)))
    obj["etag"] = hashlib.md5(content).hexdigest()
    if before := found(storage, bucket, name):
        OLD[bucket, name, before["generation"]] = (before, storage.get_file(bucket, name))
    storage.create_file(bucket, name, content, objects._checksums(content, obj))
    return obj


@handler
def get(request, response, storage, bucket, name, body):
    there, content = found(storage, bucket, name), None
    if (wanted := asked(request, "generation")) and not (there and there["generation"] == wanted):
        there, content = OLD.get((bucket, name, wanted), (None, None))
    if not there:
        raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey")
    only_if(request, there, reading=True)
    if content is None:
        content = storage.get_file(bucket, name)
    describe(response, there)
    size, wanted = len(content), re.fullmatch(r"bytes=(\d*)-(\d*)", request.get_header("Range", ""))
    if wanted and any(wanted.groups()):
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= size or start >= end:
            response["Content-Range"] = f"bytes */{size}"
            raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
        response["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        response.status, content = HTTPStatus.PARTIAL_CONTENT, content[start:end]
    response.write_file(content, content_type=there["contentType"])


@handler
def put(request, response, storage, bucket, name, body):
    if upload := asked(request, "uploadId"):
        parts = begun(upload, name)
        parts[int(asked(request, "partNumber"))] = body
        response["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
        return
    only_if(request, found(storage, bucket, name))
    if source := request.get_header("x-goog-copy-source"):
        other, _, path = server.unquote(source).lstrip("/").partition("/")
        if not found(storage, other, path):
            raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey")
        obj = store(request, storage, bucket, name, storage.get_file(other, path))
        xml(response, f"<CopyObjectResult><ETag>{escape(etag(obj))}</ETag></CopyObjectResult>")
    else:
        obj = store(request, storage, bucket, name, body)
    describe(response, obj)


@handler
def post(request, response, storage, bucket, name, body):
    upload = asked(request, "uploadId")
    if upload is None:  # ?uploads
        upload = uuid.uuid4().hex
        UPLOADS[upload] = (name, {})
        xml(response, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        return
    parts, content, last = begun(upload, name), [], 0
    for part in ElementTree.fromstring(body).iter("Part"):
        number, tag = int(part.findtext("PartNumber")), part.findtext("ETag").strip('"')
        if number <= last:
            raise Refused(HTTPStatus.BAD_REQUEST, "InvalidPartOrder")
        if number not in parts or hashlib.md5(parts[number]).hexdigest() != tag:
            raise Refused(HTTPStatus.BAD_REQUEST, "InvalidPart")
        content.append(parts[number])
        last = number
    only_if(request, found(storage, bucket, name))
    obj = store(request, storage, bucket, name, b"".join(content))
    del UPLOADS[upload]
    describe(response, obj)
    xml(response, f"<CompleteMultipartUploadResult><ETag>{escape(etag(obj))}</ETag></CompleteMultipartUploadResult>")


@handler
def delete(request, response, storage, bucket, name, body):
    if upload := asked(request, "uploadId"):
        begun(upload, name)
        del UPLOADS[upload]
    elif not objects._delete(storage, bucket, name):
        raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey")
    response.status = HTTPStatus.NO_CONTENT


def begun(upload, name):
    of, parts = UPLOADS.get(upload, (None, None))
    if of != name:
        raise Refused(HTTPStatus.NOT_FOUND, "NoSuchUpload")
    return parts


@handler
def page(request, response, storage, bucket, name, body):
    """A page of names: objects, and in the place of what goes on after a delimiter, what comes before."""
    prefix, delimiter = asked(request, "prefix") or "", asked(request, "delimiter")
    after = asked(request, "continuation-token") or asked(request, "start-after") or ""
    most = min(PAGE, int(asked(request, "max-keys") or PAGE))
    live, folders = storage.get_file_list(bucket, prefix, delimiter)
    entries = {obj["name"]: obj for obj in live} | dict.fromkeys(folders)
    names = [name for name in sorted(entries) if name > after]
    parts = []
    for name in names[:most]:
        obj = entries[name]
        if obj is None:
            parts.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
        else:
            parts.append(f"<Contents><Key>{escape(name)}</Key><Generation>{obj['generation']}</Generation><LastModified>{obj['updated']}"
                         f"</LastModified><ETag>{escape(etag(obj))}</ETag><Size>{obj['size']}</Size></Contents>")
    cut = len(names) > most
    token = f"<NextContinuationToken>{escape(names[most - 1])}</NextContinuationToken>" if cut else ""
    xml(response, f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>{str(cut).lower()}</IsTruncated>{token}{''.join(parts)}</ListBucketResult>")


class Response(server.Response):
    """Ends a reply: one to HEAD has no content, only its length."""

    def close(self):
        content = self._content.encode() if isinstance(self._content, str) else self._content
        self._handler.send_response(self.status.value, self.status.phrase)
        for name, value in self._headers.items():
            self._handler.send_header(name, value)
        if self.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self._handler.send_header("Content-Length", str(len(content)))
        self._handler.end_headers()
        if self._handler.command != "HEAD" and self.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self._handler.wfile.write(content)


class RequestHandler(server.RequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        server.Router(self).handle("HEAD")


def main():
    calls = {"GET": get, "HEAD": get, "PUT": put, "POST": post, "DELETE": delete}
    bucket = f"(?P<bucket_name>{BUCKET.replace('-', '(?:-|%2D)')})"
    server.HANDLERS = ((f"^/{bucket}/?$", {"GET": page}), (f"^/{bucket}/(?P<object_id>.+)$", calls), *server.HANDLERS)
    server.Response = Response
    storage = server.Storage(use_memory_fs=True)
    # it would write the whole index at each change, to a memory that ends with it
    storage._write_config_to_file = lambda: None
    buckets.create_bucket(BUCKET, storage)
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    http.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), partial(RequestHandler, storage)).serve_forever()


if __name__ == "__main__":
    main()
