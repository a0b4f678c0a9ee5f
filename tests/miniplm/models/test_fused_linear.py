"""Layers of one input as one product: the same scores, whatever a family calls them, and no second copy of the weights."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from miniplm.models.fp8 import Fp8Linear, convert_to_fp8
from miniplm.models.fused_linear import FusedLinear, LinearPart, fuse_linears
from miniplm.models.loading import load_model, split_head
from miniplm.models.nll import Head
from miniplm.models.throughput import count_flops_per_token
from miniplm.scoring.engine import Scorer
from tests.miniplm.made_models import make_gpt2, make_llama, save_model
from tests.miniplm.made_zoo import make_family
from tests.miniplm.scoring.test_families import Oracle, check_against_oracle

CPU = torch.device("cpu")
TOKEN_IDS = (torch.arange(40) * 7919 % 100)[None]


def make_body(name: str, **changes) -> nn.Module:
    return split_head(make_family(name, **changes).requires_grad_(False))[0]


def list_parts(body: nn.Module) -> set[str]:
    return {name for name, module in body.named_modules() if isinstance(module, LinearPart)}


@torch.no_grad()
def run(body: nn.Module) -> torch.Tensor:
    return body(input_ids=TOKEN_IDS, use_cache=False).last_hidden_state


QKV, GATE_UP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")


@pytest.mark.parametrize(
    ("name", "parts", "changes"),
    [
        ("llama", QKV + GATE_UP, {}),
        ("llama", QKV + GATE_UP, {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", QKV + GATE_UP, {}),  # biases of q, k, v and none elsewhere
        ("qwen3", QKV + GATE_UP, {}),  # norms of q and k
        ("gemma3_text", QKV + GATE_UP, {}),
        ("afmoe", (*QKV, "self_attn.gate_proj"), {}),
        ("mixtral", QKV, {}),
        ("opt", ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"), {}),
        ("bert-generation", ("attention.self.query", "attention.self.key", "attention.self.value"), {}),
        ("deepseek_v3", GATE_UP, {}),
        ("zamba2", (), {}),  # a block that several layers share
        ("gemma3n_text", (), {}),  # layers that take keys and values of others
    ],
)
def test_hidden_states_of_fused_layers_are_those_of_layers_apart(name, parts, changes):
    body = make_body(name, **changes).double()
    body.config._experts_implementation = "eager"  # which takes float64
    apart = run(body)
    assert fuse_linears(body) > 0
    torch.testing.assert_close(run(body), apart, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(run(body), apart, atol=1e-12, rtol=1e-12)
    found = list_parts(body)
    assert {f"layers.0.{part}" for part in parts} <= {
        place.removeprefix("encoder.").removeprefix("decoder.").replace("layer.", "layers.") for place in found
    }
    assert all(module._inputs is None for module in body.modules() if isinstance(module, FusedLinear))


@pytest.mark.parametrize("name", ["gpt2", "phi3", "falcon", "mamba", "bloom"])
def test_families_without_such_layers_are_left_alone(name):
    body = make_body(name)
    before = dict(body.named_modules())
    assert fuse_linears(body) == 0
    assert dict(body.named_modules()) == before


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_fused_model_scores_as_its_own_float64(tmp_path, name):
    folder = save_model(make_family(name), tmp_path / name)
    loaded = load_model(folder, "float32", CPU, will_compile=True)  # so that nothing is packed
    assert fuse_linears(loaded.body) == 4
    scorer = check_against_oracle(Oracle(folder), loaded)
    assert (scorer.forward.layout, scorer.describe()["fused_products"]) == ("flat", 4)


def test_weights_exist_once_and_are_counted_as_before():
    model = make_llama().requires_grad_(False)
    body, head = split_head(model)
    flops, num = count_flops_per_token(body, Head(head.weight_VH), 9), sum(weight.numel() for weight in body.parameters())
    old = [weakref.ref(layer.weight) for layer in (body.layers[0].self_attn.q_proj, body.layers[1].mlp.up_proj)]
    fuse_linears(body)
    gc.collect()
    assert [weight() for weight in old] == [None, None]
    assert sum(weight.numel() for weight in body.parameters()) == num
    assert count_flops_per_token(body, Head(head.weight_VH), 9) == flops


def test_fp8_layers_are_those_of_layers_apart():
    """The same layers with the same scale a row; on a CPU sums of another order are all that may differ."""
    apart, fused = make_body("qwen2").bfloat16(), make_body("qwen2").bfloat16()
    assert convert_to_fp8(apart) == 14
    fuse_linears(fused)
    assert convert_to_fp8(fused) == 2 * (1 + 1 + 1 + 1)
    joined = fused.layers[0].self_attn.q_proj.fused.linear
    assert isinstance(joined, Fp8Linear)
    parts = [getattr(apart.layers[0].self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(joined.weight_scale, torch.cat([part.weight_scale for part in parts]))
    assert torch.equal(joined.weight_q.float(), torch.cat([part.weight_q.float() for part in parts]))
    torch.testing.assert_close(run(fused), run(apart), atol=0.02, rtol=0.02)


class Block(nn.Module):
    """A body of one block, whose layers are used in ways of their own."""

    def __init__(self, use) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.first, self.second = nn.Linear(32, 16), nn.Linear(32, 32)
        self.use = use
        self.requires_grad_(False)

    def forward(self, input_ids, use_cache=False):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.use(self, self.embedding(input_ids)))


def both(block, x):
    return torch.cat([block.first(x), block.second(x)], dim=-1)


def test_layers_of_different_inputs_and_odd_widths_stay_apart():
    assert fuse_linears(Block(both)) == 1
    assert fuse_linears(Block(lambda block, x: torch.cat([block.first(x), block.second(x + 1)], dim=-1))) == 0
    narrow = Block(both)
    narrow.first = nn.Linear(32, 8).requires_grad_(False)
    assert fuse_linears(narrow) == 0
    shared = Block(lambda block, x: block.second(x) + block.first(x))
    shared.first = nn.Linear(32, 32).requires_grad_(False)
    shared.first.weight = shared.second.weight
    assert fuse_linears(shared) == 0


def test_a_body_may_look_at_its_layers_weights():
    body = Block(lambda block, x: both(block, x) * block.first.weight.mean())
    expected = body(TOKEN_IDS).last_hidden_state
    assert fuse_linears(body) == 1
    torch.testing.assert_close(body(TOKEN_IDS).last_hidden_state, expected)


def test_a_body_that_does_not_compute_with_parts_has_its_layers_back():
    """Here it views all numbers of a layer's result as one row, which columns of a product are not."""
    body = Block(
        lambda block, x: torch.cat([block.first(x).view(-1)[:16].view(1, 1, 16).expand(*x.shape[:2], 16), block.second(x)], -1)
    )
    expected = body(TOKEN_IDS).last_hidden_state
    assert fuse_linears(body) == 0
    assert type(body.first) is type(body.second) is nn.Linear
    assert torch.equal(body(TOKEN_IDS).last_hidden_state, expected)


def test_an_input_that_other_parts_were_not_given_is_multiplied_by_itself():
    body = Block(both)
    layers = [body.first, body.second]
    fuse_linears(body)
    inputs = [torch.randn(3, 32), torch.randn(3, 32)]
    for x in inputs + inputs[::-1]:  # each part is called alone and for an input that was seen before
        for part, layer in zip((body.first, body.second), layers, strict=True):
            torch.testing.assert_close(part(x), layer(x))
            torch.testing.assert_close(part(x), layer(x))


def test_a_compiled_graph_has_one_product_for_several_layers():
    body, counts = make_body("llama"), []
    apart = run(body)
    fuse_linears(body)

    def backend(graph, _):
        counts.append(sum(node.op == "call_function" and "linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(body, backend=backend, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            found = compiled(input_ids=TOKEN_IDS, use_cache=False).last_hidden_state
            torch.testing.assert_close(found, apart, atol=1e-5, rtol=1e-5)
    assert counts == [2 * 4]  # a layer: q with k and v, o, gate with up, down


def test_on_a_cpu_layers_stay_apart(tmp_path):
    """Nothing is gained there, and scores keep their last bits."""
    loaded = load_model(save_model(make_gpt2(), tmp_path / "gpt2"), "float32", CPU)
    assert Scorer(loaded, 64).describe()["fused_products"] == 0
