"""The tokenizer files that go with a trained model, such that `AutoTokenizer` gives the ids that it was trained on.

For some families, Qwen2 among them, transformers puts the family's own splitting rules in place of those in tokenizer.json, whatever class the
folder names: a Qwen2 student of a corpus made with another tokenizer would be given other ids than it was trained on. A class of the folder's
own keeps it from that, even where it may not be run (`trust_remote_code`). Nothing is put before or after a text either, as none was in training.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from miniplm.errors import TokenizerError, TrainingError, describe_reason, reading_users_file
from miniplm.storage.root import digest_content, digest_file
from miniplm.tokenizers.folders import list_differing_rules, read_backend
from miniplm.tokenizers.tokenizer import CorpusTokenizer

_CLASS_FILE = "tokenization_plain.py"
_CLASS = '''"""Reads tokenizer.json as it is."""

from transformers import PreTrainedTokenizerFast


class PlainTokenizer(PreTrainedTokenizerFast):
    pass
'''


# Whether a family of models needs the class for a tokenizer, by the digest of the tokenizer's files and of what AutoTokenizer reads of a
# model: to find out takes seconds at a vocabulary of 150,000, and the models of a run mostly share both.
_needs_class: dict[str, bool] = {}


def make_tokenizer_files(tokenizer: CorpusTokenizer, model_config: Any) -> dict[str, bytes]:
    """Names and contents of the files beside a model of this transformers configuration.

    Raises `TrainingError` where `AutoTokenizer` gives other ids even so, as a newer transformers might.
    """
    with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
        folder = Path(temporary)
        tokenizer.save(folder)
        if tokenizer.backend is not None:
            _take_template_away(folder / "tokenizer.json")
        names = {path.name for path in folder.iterdir() if path.is_file()}
        asked = {name: getattr(model_config, name, None) for name in ("model_type", "tokenizer_class", "auto_map")}
        key = digest_content([asked, {name: digest_file(folder / name) for name in names}])
        is_known = key in _needs_class
        model_config.save_pretrained(str(folder))
        if tokenizer.backend is not None and not is_known:
            _needs_class[key] = _find_difference(tokenizer, folder) is not None
        if _needs_class.get(key):
            path = folder / "tokenizer_config.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            content["auto_map"] = {"AutoTokenizer": [None, f"{Path(_CLASS_FILE).stem}.PlainTokenizer"]}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            (folder / _CLASS_FILE).write_text(_CLASS, encoding="utf-8")
            names.add(_CLASS_FILE)
            if not is_known and (difference := _find_difference(tokenizer, folder)) is not None:
                del _needs_class[key]
                raise TrainingError(
                    f"a {model_config.model_type} model's folder would not give back tokenizer {tokenizer.entry.name!r}: AutoTokenizer "
                    f"{difference}; use another architecture, or a version of transformers that this package is tested with"
                )
        return {name: (folder / name).read_bytes() for name in sorted(names)}


def _take_template_away(file: Path) -> None:
    """Without the BOS or EOS that a tokenizer puts around each text: the model was trained on documents without."""
    backend = read_backend(file)
    if backend.num_special_tokens_to_add(False):
        backend.post_processor = None
        backend.save(str(file))


def _find_difference(tokenizer: CorpusTokenizer, folder: Path) -> str | None:
    from transformers import AutoTokenizer

    try:
        # Another family's class given these files fails in any way; that is the answer, not an error.
        with reading_users_file(folder, "cannot be read by AutoTokenizer", "another class is tried", TokenizerError):
            read = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            puts_around = read("x")["input_ids"] != read("x", add_special_tokens=False)["input_ids"]
    except TokenizerError as error:
        return f"cannot read it ({describe_reason(error.__cause__ or error)})"
    if not getattr(read, "is_fast", False):
        return f"makes a {type(read).__name__} of it"
    if rules := list_differing_rules(tokenizer.backend, read.backend_tokenizer):
        return f"has other rules ({', '.join(rules)})"
    if read.eos_token_id != tokenizer.eos_token_id:
        return f"has EOS {read.eos_token_id} instead of {tokenizer.eos_token_id}"
    return "puts tokens around each text" if puts_around else None
