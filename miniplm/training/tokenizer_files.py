"""The tokenizer files that go with a trained model, such that `AutoTokenizer` reads them as they are.

For some families, Qwen2 among them, transformers puts the family's own splitting rules in place of those in
tokenizer.json, without a word: a Qwen2 student of a corpus made with another tokenizer would be given other token
ids than it was trained on. A tokenizer class named in the folder keeps it from that.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from miniplm.tokenization import CorpusTokenizer

_CLASS_FILE = "tokenization_plain.py"
_CLASS = '''"""Reads tokenizer.json as it is."""

from transformers import PreTrainedTokenizerFast


class PlainTokenizer(PreTrainedTokenizerFast):
    pass
'''


def make_tokenizer_files(tokenizer: CorpusTokenizer, model_config: Any) -> dict[str, bytes]:
    """Names and contents of the files beside a model of this transformers configuration."""
    with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
        folder = Path(temporary)
        tokenizer.save(folder)
        names = {path.name for path in folder.iterdir() if path.is_file()}
        model_config.save_pretrained(str(folder))
        if not _is_read_as_it_is(tokenizer, folder):
            path = folder / "tokenizer_config.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            content["auto_map"] = {"AutoTokenizer": [None, f"{Path(_CLASS_FILE).stem}.PlainTokenizer"]}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            (folder / _CLASS_FILE).write_text(_CLASS, encoding="utf-8")
            names.add(_CLASS_FILE)
        return {name: (folder / name).read_bytes() for name in sorted(names)}


def _is_read_as_it_is(tokenizer: CorpusTokenizer, folder: Path) -> bool:
    from transformers import AutoTokenizer

    if not getattr(tokenizer.tokenizer, "is_fast", False):
        return True
    try:
        read = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception:  # another family's class given these files fails in any way; that is the answer, not an error
        return False
    return bool(read.backend_tokenizer.to_str() == tokenizer.tokenizer.backend_tokenizer.to_str())
