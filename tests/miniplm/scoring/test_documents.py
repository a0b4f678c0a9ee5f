"""The scores of documents: they are those of a plain loop, and add up to the scores of sequences."""

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from miniplm import layout
from miniplm.errors import ScoreError
from miniplm.models.loading import load_model
from miniplm.records.manifests import ModelEntry
from miniplm.scoring.documents import find_document_scores, read_document_scores
from miniplm.scoring.engine import Scorer
from miniplm.scoring.shards import score_shard
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus
from tests.miniplm.made_models import make_gpt2, make_llama, save_model

EOS = 0
CPU = torch.device("cpu")


def make_mamba():
    """No attention: its state crosses what comes before in a sequence, and its layout is rows."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=100, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()


def score_parts(model, sequence, attention):
    """NLL and number of scored targets of each part that EOS cuts a sequence into, by a float64 loop over the targets."""
    parts = [[0.0, 0] for _ in range(np.count_nonzero(sequence[:-1] == EOS) + 1)]
    begin = part = 0
    for place, token_id in enumerate(sequence[:-1]):
        if token_id == EOS:
            part, begin = part + 1, place + 1 if attention == "document" else 0
            continue
        with torch.no_grad():
            logits = model.double()(input_ids=torch.tensor(sequence[begin : place + 1].astype(np.int64))[None]).logits[0, -1]
        parts[part][0] -= logits.log_softmax(-1)[int(sequence[place + 1])].item()
        parts[part][1] += 1
    return parts


@pytest.mark.parametrize("attention", ["sequence", "document"])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_mamba])
def test_each_part_has_the_score_of_a_plain_loop(make, attention, tmp_path):
    model = make()
    rng = np.random.default_rng(0)
    sequences = [rng.choice(100, size=length, p=[0.2] + [0.8 / 99] * 99) for length in (1, 2, 7, 24, 30)]
    sequences += [np.array([EOS, EOS, 5, 6]), np.array([5, EOS]), np.array([EOS, 7, 8, EOS, EOS])]
    scores = Scorer(load_model(save_model(model, tmp_path / "m"), "float32", CPU), 16, attention).score(sequences, EOS)
    expected = [part for sequence in sequences for part in score_parts(model, sequence, attention)]
    assert scores.part_num_scored_tokens.tolist() == [num_scored for _, num_scored in expected]
    np.testing.assert_allclose(scores.part_nll_sum, [nll for nll, _ in expected], atol=1e-3)
    owners = np.repeat(np.arange(len(sequences)), scores.num_parts)
    np.testing.assert_allclose(np.bincount(owners, scores.part_nll_sum), scores.nll_sum, atol=1e-9)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A shard of which the third sequence has one document with an EOS of its own, and the fourth has one that belongs to no one knows which."""
    folder = tmp_path_factory.mktemp("scored")
    storage = Storage(str(folder / "root"))
    sequences = [[5, 6, 7, EOS, 8, 9], [9, 9, EOS, EOS, 4, EOS], [1, 2, EOS, 3, 3], [4, EOS, 5, 6, EOS, 7]]
    documents = {0: [70_000, 70_001], 1: [70_001, 70_002, 70_003], 2: [9], 3: [1, 2]}
    corpus = make_corpus(storage, {"candidate": [sequences]}, document_ids=documents)
    shard = corpus.split_shards("candidate")[0]
    path = save_model(make_llama(), folder / "model")
    entry = ModelEntry(model_id="m", source=str(path), dtype="float32", weights_digest="sha256:w", num_parameters=1)
    scorer = Scorer(load_model(path, "float32", CPU))
    manifest = score_shard(storage, corpus, shard, entry, scorer)
    return storage, shard, manifest, scorer.score([np.array(one) for one in sequences], EOS)


def test_rows_are_documents_of_sequences_and_add_up(scored):
    storage, shard, manifest, scores = scored
    table = read_document_scores(storage, shard, manifest)
    assert table["document_id"].to_pylist() == [70_000, 70_001, 70_001, 70_002, 70_003, 9, None]
    first = shard.first_sequence_id
    assert table["sequence_id"].to_pylist() == [first + row for row in (0, 0, 1, 1, 1, 2, 3)]
    assert table["num_scored_tokens"].to_pylist() == [3, 1, 2, 0, 1, 3, 3]
    sums = table.group_by("sequence_id").aggregate([("nll_sum", "sum")])["nll_sum_sum"].to_numpy()
    np.testing.assert_allclose(sums, scores.nll_sum, atol=1e-9)
    assert (manifest.documents.num_rows, manifest.documents.num_unattributed) == (7, 1)


def test_missing_and_damaged_document_scores_are_told_and_nothing_else_is_lost(scored):
    storage, shard, manifest, _ = scored
    path = layout.document_scores(shard.corpus_id, "m", shard.shard_index)
    kept = storage.read_bytes(path)
    storage.delete(path)
    with pytest.raises(ScoreError, match=r"of its documents under model m are missing .* --documents"):
        read_document_scores(storage, shard, manifest)
    with storage.publish(path) as file:
        file.write_bytes(kept[:-9] + b"damaged!!")
    assert find_document_scores(storage, shard, manifest) is None
    with pytest.raises(ScoreError, match="are damaged"):
        read_document_scores(storage, shard, manifest)
    older = manifest.model_copy(update={"documents": None})
    assert find_document_scores(storage, shard, older) is None
