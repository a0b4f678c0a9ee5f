import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniplm.models.nll import Head, mask_scored_targets, nll_in_tiles, nll_of_hidden, nll_of_logits

EOS = 0


def test_target_after_eos_is_not_scored_but_eos_as_target_is():
    # inputs: 5 6 EOS 7 -> the target 7 after EOS does not count; the target EOS after 6 does
    token_ids = torch.tensor([[5, 6, EOS, 7, 8]])
    assert mask_scored_targets(token_ids, torch.tensor([5]), EOS).tolist() == [[True, True, False, True]]


def test_padding_is_never_scored():
    token_ids = torch.tensor([[5, 6, 7, EOS, EOS], [5, EOS, EOS, EOS, EOS]])
    mask = mask_scored_targets(token_ids, torch.tensor([3, 1]), EOS)
    assert mask.tolist() == [[True, True, False, False], [False, False, False, False]]


def test_eos_that_ends_a_sequence_is_scored_and_padding_after_it_is_not():
    token_ids = torch.tensor([[5, 6, EOS, EOS, EOS]])
    assert mask_scored_targets(token_ids, torch.tensor([3]), EOS).tolist() == [[True, True, False, False]]


def test_nll_of_known_probabilities():
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    assert nll_of_logits(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4), math.log(2)], abs=1e-6)


def test_nll_is_invariant_to_a_shift_of_huge_logits():
    logits = torch.tensor([[30000.0, 30001.0]])
    assert nll_of_logits(logits, torch.tensor([1])).item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_blocks_agree_with_float64_cross_entropy(num_tokens, block_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 16, generator=generator)
    weight = torch.randn(31, 16, generator=generator)
    targets = torch.randint(0, 31, (num_tokens,), generator=generator)
    ours = nll_of_hidden(Head(weight), hidden, targets, block_tokens)
    oracle = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    torch.testing.assert_close(ours.double(), oracle, atol=1e-4, rtol=1e-5)


def test_gradients_through_blocks_are_those_of_whole_logits():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    weight = torch.randn(31, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 31, (23,), generator=generator)
    nll_of_hidden(Head(weight), hidden, targets, block_tokens=4).sum().backward()
    blocks = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
    torch.testing.assert_close(blocks[0], hidden.grad)
    torch.testing.assert_close(blocks[1], weight.grad)


def test_softcap_scale_and_bias_are_applied():
    head = Head(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.5, 0.0]), scale=2.0, softcap=3.0)
    expected = [3 * math.tanh((4 + 0.5) * 2 / 3), 3 * math.tanh(-4 * 2 / 3)]
    assert head.logits(torch.tensor([[4.0]]))[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("head_options", [{}, {"bias_V": torch.linspace(-1, 1, 50)}, {"scale": 0.5, "softcap": 4.0}])
@pytest.mark.parametrize("tile_tokens", [1, 5, 100])
@pytest.mark.parametrize("slice_size", [7, 50, 64])
def test_tiles_give_the_cross_entropy(head_options, tile_tokens, slice_size):
    torch.manual_seed(0)
    head = Head(torch.randn(50, 8), **head_options)
    hidden, targets = torch.randn(13, 8) * 3, torch.randint(0, 50, (13,))
    slices = head.weight_VH.split(slice_size)
    biases = [None] * len(slices) if head.bias_V is None else head.bias_V.split(slice_size)

    def reduce_slice(hidden_KH, index):
        return torch.logsumexp(head.adjust(hidden_KH @ slices[index].T, biases[index]), dim=1)

    ours = nll_in_tiles(head, hidden, targets, tile_tokens, len(slices), reduce_slice)
    exact = Head(head.weight_VH.double(), **head_options).adjust(hidden.double() @ head.weight_VH.double().T, head.bias_V)
    torch.testing.assert_close(
        ours, torch.nn.functional.cross_entropy(exact, targets, reduction="none").float(), atol=1e-5, rtol=1e-5
    )
