"""The demo's text with its dirt, more of it: what `benchmarks.proxy` was measured on.

python -m benchmarks.proxy_inputs FOLDER --tokens-per-domain 230000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from scripts.demo_corpus import DOMAINS, take_documents, write_documents
from scripts.demo_dirt import add_dirt, read_messages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy_inputs", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens-per-domain", type=int, default=230_000, help="of clean text, before a part of it becomes dirt")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/smollm2-135m/tokenizer.json"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="where downloaded packages are kept")
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.tokenizer))
    given.folder.mkdir(parents=True, exist_ok=True)
    messages = list(read_messages(given.cache))
    for domain in DOMAINS:
        texts = domain.read_texts(given.cache)
        (documents,) = take_documents(texts, lambda text: len(tokenizer.encode(text).ids), given.tokens_per_domain)
        write_documents(given.folder / f"{domain.name}.jsonl.zst", domain.name, add_dirt(documents, messages))
        print(f"{domain.name}: {len(documents)} documents", flush=True)


if __name__ == "__main__":
    main()
