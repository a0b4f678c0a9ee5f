"""Reads a source file as decompressed blocks, never a whole file at a time, and refuses by name what it cannot read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, TypeVar

from miniplm.errors import DamagedSourceError, NotOneFileError, reading_users_file
from miniplm.sources.compression import Compression, decompress, named_compression, recognise_compression
from miniplm.sources.files import SourceFile, open_raw
from miniplm.sources.signatures import HEAD_BYTES, is_plain_text, recognise_format

BytesCallback = Callable[[int], None]
T = TypeVar("T")

# Large beside the cost of a call, small beside a batch of documents, of which several blocks are held.
_BLOCK_BYTES = 1 << 20
_READ = "plain, gzip, zstd, bzip2, xz, lzma, or a zip archive of one file"


def recognise_file(file: SourceFile) -> Compression | None:
    """How a file is compressed, by its first bytes."""
    with open_raw(file) as raw:
        return recognise_compression(StoredFile(raw, lambda num_bytes: None).peek(HEAD_BYTES))


def read_blocks(file: SourceFile, on_bytes: BytesCallback) -> Iterator[bytes]:
    """The decompressed content in blocks; `on_bytes` is told of each stored byte that was read.

    Whether a file is compressed is said by its bytes, not by its name. Raises `DamagedSourceError` where a compressed file is
    truncated or damaged, and where it is an archive, or compressed in a way that is not read.
    """
    with open_raw(file) as opened:
        raw = StoredFile(opened, on_bytes)
        head = raw.peek(HEAD_BYTES)
        compression = recognise_compression(head)
        if compression is None:
            _refuse_unread(file, head)
            yield from iter(lambda: raw.read(_BLOCK_BYTES), b"")
            return
        blocks = decompress(raw, compression)
        begin = b""
        while block := _read_block(file, raw, blocks, compression):
            # Only the beginning tells whether it is compressed twice, and it may come in several small blocks.
            if len(begin) < HEAD_BYTES:
                begin += block[: HEAD_BYTES - len(begin)]
                _refuse_nested(file, begin, compression)
            yield block
        raw.count_rest(file.num_bytes)


def peek_blocks(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of the content, and all of it."""
    first: list[bytes] = []
    for block in blocks:
        first.append(block)
        if sum(map(len, first)) >= HEAD_BYTES:
            break
    return b"".join(first)[:HEAD_BYTES], chain(first, blocks)


class StoredFile:
    """An open file that tells how much of it was read, and keeps the error that reading it ended with."""

    def __init__(self, file: IO[bytes], on_bytes: BytesCallback) -> None:
        self.error: Exception | None = None
        self.closed = False
        self._file = file
        self._on_bytes = on_bytes
        self._num_told = 0
        self._ahead = b""

    def read(self, size: int = -1) -> bytes:
        ahead, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
        block = ahead if len(ahead) == size else ahead + self._try(lambda: self._file.read(size - len(ahead) if size >= 0 else -1))
        self._num_told += len(block)
        self._on_bytes(len(block))
        return block

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay to be read; of a file that cannot be read twice too."""
        while len(self._ahead) < size:
            block = self._try(lambda: self._file.read(size - len(self._ahead)))
            if not block:
                break
            self._ahead += block
        return self._ahead[:size]

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 1:
            offset, whence = offset + self.tell(), 0
        self._ahead = b""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell() - len(self._ahead)

    def _try(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except Exception as error:
            self.error = error
            raise

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Whoever opened the file closes it."""

    def count_rest(self, num_bytes: int) -> None:
        """Tells of the bytes that were passed over: all are read once when the file has ended."""
        self._on_bytes(num_bytes - self._num_told)
        self._num_told = num_bytes


@contextmanager
def decoding(file: SourceFile, raw: StoredFile, problem: str) -> Iterator[None]:
    """Turns what a library raises over the bytes of a file into `DamagedSourceError`; a failed reading stays what it is."""
    try:
        with reading_users_file(file.path, problem, "copy it again", DamagedSourceError):
            yield
    except DamagedSourceError:
        # A library that is given a broken connection for a file says that the file is broken; the copy is good, another try may read it.
        if raw.error is not None:
            raise raw.error from None
        raise


def _read_block(file: SourceFile, raw: StoredFile, blocks: Iterator[bytes], compression: Compression) -> bytes:
    """The next block that is not empty; an empty one at the end."""
    with decoding(file, raw, f"is damaged or no {compression} file"):
        try:
            return next((block for block in blocks if block), b"")
        except EOFError as error:
            if raw.error is not None:
                raise
            raise DamagedSourceError(
                f"{file.path} is truncated: its {compression} data ends in the middle ({error}); copy it again"
            ) from error
        except NotOneFileError as error:
            raise DamagedSourceError(f"{file.path} is {error}; unpack it and name what was in it") from error


def _refuse_unread(file: SourceFile, head: bytes) -> None:
    """Refuses what is no content as it is: archives, other compressions, and files that are not what their ending promises."""
    found = recognise_format(head)
    if found is not None and found.kind == "container":
        raise DamagedSourceError(f"{file.path} is {found.name}, which is not read; unpack it ({_READ}: these are read)")
    promised = named_compression(file.path)
    if promised is None:
        return
    name, signature = promised
    if not head:
        raise DamagedSourceError(f"{file.path} is empty, which no {name} file is; it was cut off: copy it again")
    if signature and (signature.startswith(head) or head.startswith(signature)):
        raise DamagedSourceError(f"{file.path} is truncated: of its {name} data there are {len(head)} bytes; copy it again")
    if not is_plain_text(head):
        what = f"is {found.name}" if found else f"begins with {head[:8].hex(' ')}, which is neither that nor UTF-8 text"
        raise DamagedSourceError(
            f"{file.path} is damaged or no {name} file that can be read: it {what}; copy it again ({_READ}: these are read)"
        )


def _refuse_nested(file: SourceFile, begin: bytes, compression: Compression) -> None:
    inner = recognise_compression(begin)
    found = recognise_format(begin)
    if inner is not None or (found is not None and found.kind == "container"):
        what = f"{inner} data" if inner is not None else found.name if found else ""
        raise DamagedSourceError(f"{file.path} holds {what} inside its {compression} data; unpack it, or take off one of the two")
