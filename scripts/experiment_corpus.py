"""The corpus of the experiment on the effect: the demo's domains and dirt at any size, held-out text, and a labelled sample beside it.

    python -m scripts.experiment_corpus --tokens 700000

Of each domain the documents go by the order of their digests, first to clean text that measures the students (`heldout/`), then to a sample
whose labels train a quality classifier (`labelled/`), then to the corpus; none is in two of them. Two fifths of the documents of the
corpus and of the sample are dirt. All text is of packages pinned by their digests: every machine gets the same, and `SOURCES.md` holds its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.demo_corpus import DEMO_CHARS, cut_text, digest_texts, train_tokenizer, write_documents
from scripts.demo_corpus import DOMAINS as DEMO_DOMAINS
from scripts.demo_corpus import read_python as read_django
from scripts.demo_dirt import CLEAN, add_dirt, read_messages
from scripts.packages import FetchError, Package, digest_of, fetch_package, publish_folder, read_members

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
HELDOUT_TOKENS = 8_000  # a domain: 40,000 tokens measure a milestone in a second, and tell 0.02 nats apart by pairs
LABELLED_TOKENS = 20_000  # a domain, before a part of it becomes dirt: some 200 documents, which people label in an afternoon
STUDENT_VOCAB_SIZE = 2_048  # of students of 0.3 M parameters: with the teacher's 49,152 their embedding alone would have 3 M
_DOCUMENTS_PER_BATCH = 256


SYMPY = Package(
    name="sympy",
    version="1.14.0",
    file="sympy-1.14.0-py3-none-any.whl",
    num_bytes=6_299_353,
    sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
)


def read_python(cache: Path) -> Iterator[tuple[str, str]]:
    """The code of Django and SymPy, with SymPy's tests and without its generated parsers and its tables of equations."""
    yield from read_django(cache)
    for name, content in read_members(fetch_package(SYMPY, cache), "sympy/*.py"):
        if "/_antlr/" not in name and "/benchmarks/" not in name:
            yield name, content.decode()


DOMAINS = tuple(
    replace(domain, origin=f"{domain.origin}, and of SymPy, package {SYMPY.requirement}", read_texts=read_python)
    if domain.name == "python"
    else domain
    for domain in DEMO_DOMAINS
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.experiment_corpus", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tokens",
        type=int,
        help="tokens of the corpus in all, spread evenly over the domains, before a part becomes dirt; default: everything, some 15 M",
    )
    parser.add_argument("--folder", type=Path, default=Path("samples/effect"), help="where the files go; it is replaced whole")
    parser.add_argument(
        "--tokenizer", type=Path, default=Path("models/smollm2-135m/tokenizer.json"), help="what tokens are counted by"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="where downloaded packages are kept")
    given = parser.parse_args(arguments)
    if given.tokens is not None and given.tokens < 1:
        parser.error(f"--tokens is {given.tokens}; it must be at least 1")
    if not given.tokenizer.is_file():
        parser.error(f"--tokenizer: there is no file {given.tokenizer}; `make assets` fetches it")
    os.chdir(ROOT)
    given.cache.mkdir(parents=True, exist_ok=True)
    try:
        made = make_corpus(given.folder, given.cache, given.tokenizer, given.tokens)
    except FetchError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1
    print((given.folder / "SOURCES.md").read_text() if made else f"corpus: {given.folder} is there already")
    return 0


def make_corpus(folder: Path, cache: Path, tokenizer_json: Path, num_tokens: int | None) -> bool:
    """Writes the corpus; False where it is there already. The folder appears under its name only when it is whole."""
    sources = folder / "SOURCES.md"
    scripts = (Path(__file__), *(Path(__file__).with_name(f"demo_{name}.py") for name in ("corpus", "dirt")))
    digests = " ".join(digest_of(script)[:16] for script in scripts)
    recipe = f"recipe: {digests}, tokens: {num_tokens or 'all'}"
    if sources.is_file() and recipe in sources.read_text().splitlines():
        return False
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    messages = list(read_messages(cache))
    # The least text first: what it lacks of an even share is spread over those that come after it.
    texts = {domain.name: cut_documents(domain.read_texts(cache)) for domain in DOMAINS}
    order = sorted(DOMAINS, key=lambda domain: sum(len(text) for _, text in texts[domain.name]))
    with publish_folder(folder) as aside:
        for name in ("heldout", "labelled"):
            (aside / name).mkdir()
        rows, missing, all_texts, other_texts = {}, num_tokens, [], []
        for index, domain in enumerate(order):
            documents = texts.pop(domain.name)
            heldout, _ = take_share(documents, tokenizer, HELDOUT_TOKENS)
            documents = documents[len(heldout) :]
            labelled, _ = take_share(documents, tokenizer, LABELLED_TOKENS)
            documents = documents[len(labelled) :]
            share = None if missing is None else missing // (len(order) - index)
            taken, counted = take_share(documents, tokenizer, share)
            missing = None if missing is None else missing - counted
            file = f"{domain.name}.jsonl.zst"
            dirty = add_dirt(taken, messages)
            write_documents(aside / file, domain.name, dirty)
            sample = add_dirt(labelled, messages)
            write_documents(aside / "labelled" / file, domain.name, sample)
            write_documents(aside / "heldout" / file, domain.name, [(source, text, CLEAN) for source, text in heldout])
            all_texts += [text for _, text, _ in dirty]
            other_texts += [text for _, text, _ in sample] + [text for _, text in heldout]
            numbers = f"{len(taken):,} | {counted:,} | {len(labelled)} | {len(heldout)}"
            rows[domain.name] = (
                f"| {domain.name} | {numbers} | {domain.origin} | {domain.licence} | {digest_of(aside / file)[:16]} |\n"
            )
            print(f"corpus: {domain.name}: {len(taken):,} documents, {counted:,} tokens", flush=True)
        train_tokenizer(all_texts, aside / "tokenizer", STUDENT_VOCAB_SIZE)
        (aside / "SOURCES.md").write_text(
            "# Where this corpus comes from\n\nAssembled by scripts/experiment_corpus.py; not part of MiniPLM. Tokens are counted before two "
            "fifths of the documents become dirt.\n\n"
            "| domain | documents | tokens | labelled | held out | origin | licence | sha256 of the file |\n|---|---|---|---|---|---|---|---|\n"
            f"{''.join(rows[domain.name] for domain in DOMAINS)}\n"
            f"text: {digest_texts(all_texts + other_texts)}\n\n{recipe}\n"
        )
    return True


def cut_documents(texts: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Source and text of the documents that the texts are cut into, in the order of their digests; no text twice."""
    by_digest = {
        hashlib.sha256(part.encode()).digest(): (source, part) for source, text in texts for part in cut_text(text, *DEMO_CHARS)
    }
    return [document for _, document in sorted(by_digest.items())]


def take_share(documents: list[tuple[str, str]], tokenizer: Tokenizer, num_tokens: int | None) -> tuple[list[tuple[str, str]], int]:
    """The first documents that together reach `num_tokens` tokens (all of them where they do not, or for None), and their tokens."""
    taken: list[tuple[str, str]] = []
    counted = 0
    for first in range(0, len(documents), _DOCUMENTS_PER_BATCH):
        batch = documents[first : first + _DOCUMENTS_PER_BATCH]
        for document, encoding in zip(batch, tokenizer.encode_batch_fast([text for _, text in batch]), strict=True):
            if num_tokens is not None and counted >= num_tokens:
                return taken, counted
            taken.append(document)
            counted += len(encoding.ids)
    return taken, counted


if __name__ == "__main__":
    sys.exit(main())
