"""What stands for the end of a process, and for damage on a disk."""

from pathlib import Path


class Interrupted(BaseException):
    """As Ctrl-C or a kill: nobody may catch it."""


def flip_byte(path: Path, place: int | None = None) -> None:
    """Turns a bit over, of the byte in the middle if not told otherwise."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)
