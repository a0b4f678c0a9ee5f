"""S3 as a file system that bears faults: a request is tried again within a budget of time, and what stays is told in plain words.

One loop does all of it, `PatientS3FileSystem._call_s3`: botocore's and s3fs's own tries are off, so that tries do not
multiply. An object's bytes are read inside that loop, so a connection cut in the middle of a body is tried again too,
whoever reads: this library, PyArrow through a file, DuckDB through the registered file system.

What a request is given: tries until `BUDGET_SECONDS` are over, with waits of 0.1 s doubling up to 10 s and halved at random;
`FIRST_ANSWER_SECONDS` until the store has answered this process once, so that a mistyped endpoint is told soon; a try
fails after 10 s without a connection or 60 s without a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import threading
import time
from datetime import UTC, datetime
from typing import Any

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from miniplm.errors import StorageError, StorageUnavailableError, is_passing
from miniplm.storage.s3_errors import explain_refusal, explain_unavailable, find_response, is_plain_answer, read_clock_skew

BUDGET_SECONDS = 120.0
FIRST_ANSWER_SECONDS = 15.0
# Parts of one file that are sent at a time: 128 MiB of memory, and at most 160 GB a file before parts grow.
PART_BYTES = 16 << 20
MOST_PARTS_AT_ONCE = 8
_MOST_PARTS = 10_000
_LONGEST_WAIT_SECONDS = 10.0
_ABORT_SECONDS = 15.0


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]
    """s3fs with one loop of tries, no listing cache, parallel parts that are aborted with their upload, and `StorageError`s.

    `FileNotFoundError` says that an object does not exist; whatever else a store refuses is a `StorageError`, and what
    it still refuses when the budget is spent, though another time it may not, a `StorageUnavailableError`.
    """

    # Of s3fs; botocore's tries are set below.
    retries = 1

    def __init__(self, **options: Any) -> None:
        config = {
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 64,  # its own 10 are used up by the parts of two files
            **(options.pop("config_kwargs", None) or {}),
        }
        defaults = {"default_cache_type": "none", "default_block_size": PART_BYTES, "max_concurrency": MOST_PARTS_AT_ONCE}
        # Other machines publish while this process waits for it: what was listed a moment ago says nothing.
        super().__init__(**{**defaults, **options, "use_listings_cache": False, "config_kwargs": config})
        # fsspec gives one instance to the whole process, so only its first request is told soon.
        self._has_answered = False

    @staticmethod
    def close_session(loop: asyncio.AbstractEventLoop | None, s3: Any) -> None:
        """Closes a client on its own loop. s3fs takes the one that runs where the file system is collected, such as Prefect's."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            S3FileSystem.close_session(loop, s3)
            return
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(s3.__aexit__(None, None, None), loop)
        else:
            S3FileSystem.close_session(None, s3)

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        for num_tries in itertools.count(1):
            try:
                answer = await self._try_once(method, *akwarglist, **kwargs)
                self._has_answered = True
                return answer
            except (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, ValueError, OSError) as error:
                response = find_response(error)
                self._has_answered = self._has_answered or response is not None
                if not is_passing(error):
                    if is_plain_answer(error):
                        raise
                    error = await self._find_reason(method, error, kwargs)
                    if is_plain_answer(error):
                        raise error
                    raise StorageError(explain_refusal(error, method, self._endpoint(), kwargs)) from error
                # At random, so that workers that met the same fault do not all come back at the same moment.
                wait = min(_LONGEST_WAIT_SECONDS, 0.1 * 2 ** (num_tries - 1)) * random.uniform(0.5, 1)
                seconds = time.monotonic() - started
                if seconds + wait > (BUDGET_SECONDS if self._has_answered else FIRST_ANSWER_SECONDS):
                    raise StorageUnavailableError(
                        explain_unavailable(error, method, self._endpoint(), kwargs, num_tries, seconds)
                    ) from error
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _try_once(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        answer = await super()._call_s3(method, *akwarglist, **kwargs)
        # Here, inside the loop of tries: nobody could try again a body that breaks off later, while its reader reads it.
        if method == "get_object":
            body = answer["Body"]
            try:
                answer["Body"] = _ReadBody(await body.read())
            finally:
                body.close()
        if method == "delete_objects" and (errors := answer.get("Errors")):
            # The request went well and some of its keys did not; s3fs would take them for deleted.
            first = {"Code": errors[0].get("Code", "InternalError"), "Message": errors[0].get("Message", "")}
            raise ClientError({"Error": first, "ResponseMetadata": {"HTTPStatusCode": 200}}, method)
        return answer

    async def _find_reason(self, method: str, error: BaseException, kwargs: dict[str, Any]) -> BaseException:
        """What a refused HEAD would have said if it had a body: asked of a listing."""
        if not method.startswith("head_") or find_response(error) is None or read_clock_skew(error):
            return error
        try:
            await super()._call_s3("list_objects_v2", Bucket=kwargs["Bucket"], MaxKeys=1)
        except (ClientError, OSError) as told:
            return told if find_response(told) is not None else error
        return error

    def _endpoint(self) -> str:
        return "" if self._s3 is None else str(self._s3.meta.endpoint_url)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """A range, or the whole: one request for a small object, which also tells the size of a large one, whose rest comes in parts."""
        if start is not None or end is not None:
            return bytes(await super()._cat_file(path, start=start, end=end, **kwargs))
        for num_tries in itertools.count(1):
            try:
                return await self._read_whole(path)
            except OSError as error:
                response = find_response(error)
                code = "" if response is None else response["Error"].get("Code")
                if code in ("InvalidRange", "416"):
                    return b""
                # It was replaced between two parts, and a mixture of both is neither.
                if code not in ("PreconditionFailed", "412") or num_tries == 3:
                    raise
        raise AssertionError("unreachable")

    async def _read_whole(self, path: str) -> bytes:
        bucket, key, _ = self.split_path(path)
        first = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=0-{PART_BYTES - 1}")
        content = bytes(await first["Body"].read())
        size = int(first["ContentRange"].rpartition("/")[2]) if "ContentRange" in first else len(content)
        slots = asyncio.Semaphore(self.max_concurrency)

        async def read_part(start: int) -> bytes:
            async with slots:
                part = f"bytes={start}-{min(size, start + PART_BYTES) - 1}"
                answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=part, IfMatch=first["ETag"])
                return bytes(await answer["Body"].read())

        return b"".join([content, *await asyncio.gather(*map(read_part, range(len(content), size, PART_BYTES)))])

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """One request for a small file, parts at the same time for a large one; nothing is visible before all is there."""
        bucket, key, _ = self.split_path(rpath)
        size = os.path.getsize(lpath)
        # An upload in parts costs two requests more than it has parts, which pays only for more than two.
        if size <= 2 * PART_BYTES:
            with open(lpath, "rb") as file:
                await self._call_s3("put_object", Bucket=bucket, Key=key, Body=file.read())
            return
        for num_tries in itertools.count(1):
            try:
                return await self._put_parts(lpath, bucket, key, size)
            except FileNotFoundError:
                # The answer to the completing request was lost and its second try found no such upload: most likely it had
                # been completed. The same bytes are sent once more rather than guessing.
                if num_tries == 3:
                    raise

    async def _put_parts(self, lpath: str, bucket: str, key: str, size: int) -> None:
        part_bytes = max(PART_BYTES, math.ceil(size / _MOST_PARTS))
        upload = {"Bucket": bucket, "Key": key}
        upload["UploadId"] = (await self._call_s3("create_multipart_upload", **upload))["UploadId"]
        slots = asyncio.Semaphore(self.max_concurrency)

        async def put_part(number: int) -> dict[str, Any]:
            async with slots:
                with open(lpath, "rb") as file:
                    file.seek((number - 1) * part_bytes)
                    content = file.read(part_bytes)
                answer = await self._call_s3("upload_part", **upload, PartNumber=number, Body=content)
                return {"PartNumber": number, "ETag": answer["ETag"]}

        parts = [asyncio.ensure_future(put_part(number)) for number in range(1, math.ceil(size / part_bytes) + 1)]
        try:
            finished = await asyncio.gather(*parts)
            await self._call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": finished})
        except BaseException:
            # Parts that are still under way could arrive after the abort, and stay.
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._call_s3("abort_multipart_upload", **upload), _ABORT_SECONDS)
            raise

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """Uploads a file; an exception in the waiting thread, such as Ctrl-C, aborts the upload."""
        ended = threading.Event()

        async def put() -> None:
            try:
                await self._put_file(lpath, rpath)
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(put(), self.loop)
        try:
            future.result()
        except BaseException:
            future.cancel()
            ended.wait(_ABORT_SECONDS)
            raise

    def abort_old_uploads(self, path: str, older_than_seconds: float) -> int:
        """Aborts unfinished uploads below a folder that began so long ago, and says how many: parts cost space and are never seen.

        A store that does not let this user list them is left to its own rules.
        """
        bucket, key, _ = self.split_path(path)
        where = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        num_aborted = 0
        while True:
            try:
                answer = self.call_s3("list_multipart_uploads", **where)
            except StorageUnavailableError:
                raise
            except (StorageError, OSError):
                return num_aborted
            for upload in answer.get("Uploads", []):
                if (datetime.now(UTC) - upload["Initiated"]).total_seconds() >= older_than_seconds:
                    with contextlib.suppress(FileNotFoundError):
                        self.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                        num_aborted += 1
            if not answer.get("IsTruncated"):
                return num_aborted
            where |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    # s3fs bound its own at the definition of its class.
    call_s3 = sync_wrapper(_call_s3)


class SnapshotS3FileSystem(PatientS3FileSystem):
    """For readers of many files that no longer change: one listing of a folder answers all questions about its files.

    DuckDB asks seven times for each file that it reads. What appears after the first question is looked for as ever.
    """

    # fsspec would give the next reader this instance, with the listings of the last one.
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listed: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def _info(self, path: str, *args: Any, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        folder = self._parent(path)
        if folder not in self._listed:
            self._listed[folder] = asyncio.ensure_future(self._list_files(folder))
        files = await self._listed[folder]
        return files[path] if path in files else await super()._info(path, *args, **kwargs)

    async def _list_files(self, folder: str) -> dict[str, Any]:
        return {entry["name"]: entry for entry in await self._lsdir(folder) if entry["type"] == "file"}


class _ReadBody:
    """The body of an answer after it was read, as s3fs asks for it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, size: int = -1) -> bytes:
        content = self._content if size is None or size < 0 else self._content[:size]
        self._content = self._content[len(content) :]
        return content

    def close(self) -> None:
        self._content = b""
