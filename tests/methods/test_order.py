import torch

from roundel.methods.order import column_order

WEIGHT = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
DIAGONAL = torch.tensor([1.0, 5, 2, 9, 3, 3, 7, 0, 8, 4])


def test_act_order_is_by_descending_diagonal() -> None:
    order = column_order("act_order", WEIGHT, DIAGONAL, 4)
    assert order.tolist() == [3, 8, 6, 1, 9, 4, 5, 2, 0, 7]


def test_group_aware_keeps_groups_together() -> None:
    order = column_order("group_aware", WEIGHT, DIAGONAL, 4)
    assert order.tolist() == [3, 1, 2, 0, 8, 9, 6, 4, 5, 7]


def test_group_aware_with_one_group_is_act_order() -> None:
    order = column_order("group_aware", WEIGHT, DIAGONAL, 10)
    assert torch.equal(order, column_order("act_order", WEIGHT, DIAGONAL, 4))


def test_identity_is_no_order() -> None:
    assert column_order("identity", WEIGHT, DIAGONAL, 4) is None


def test_spearman_walks_from_like_to_like() -> None:
    twins = WEIGHT.clone()
    twins[:, 0] = WEIGHT[:, 3] ** 3  # the same ranks as column 3
    twins[:, 7] = -WEIGHT[:, 3]
    order = column_order("spearman", twins, DIAGONAL, 4).tolist()
    assert sorted(order) == list(range(10))
    assert order[:2] == [3, 0]
    assert order[-1] != 0
