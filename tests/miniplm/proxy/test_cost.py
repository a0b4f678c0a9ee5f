import pytest

from miniplm.proxy.cost import count_flops


def test_a_small_share_of_a_large_teacher_saves_nearly_all_of_it():
    flops = count_flops("linear", 1_000_000, 50_000, 1800, 100)
    assert (flops.teacher, flops.reference, flops.proxy, flops.without_proxy) == (1.8e8, 2e8, 4e6, 3.8e9)
    assert flops.saved == pytest.approx(1 - 3.84e8 / 3.8e9)
    assert "(90% less)" in flops.describe()


def test_a_head_reads_the_reference_twice_and_may_not_pay():
    flops = count_flops("head", 1_000_000, 50_000, 100, 100)
    assert flops.proxy == flops.reference == 2e8
    assert flops.saved < 0
    assert "more, so that it does not pay" in flops.describe()
