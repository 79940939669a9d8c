import numpy as np
import pytest
import torch

from plait.models.plan import Order, Plan

ROWS = ((9, 14), (5, 3, 11), (0,))


def test_sorted_positions(new_batch):
    batch = new_batch(ROWS, padding=3)
    order = Plan.of(batch).order
    modality_N, padding_N = batch.modality_BT.flatten().long(), batch.padding_BT.flatten()
    N = len(modality_N)
    assert order.permutation_N.sort().values.tolist() == list(range(N))
    assert order.permutation_N[order.inverse_N].tolist() == list(range(N))
    assert order.real == tuple(int(m.sum()) for m in batch.modality_masks)
    assert sum(order.counts) == N
    assert order.counts[1:] == order.real[1:]
    start = 0
    for m, (count, real) in enumerate(zip(order.counts, order.real, strict=True)):
        here = order.permutation_N[start : start + count]
        assert (modality_N[here] == m).all()
        assert not padding_N[here[:real]].any()
        assert padding_N[here[real:]].all()
        assert (here[:real].diff() > 0).all(), "sequence order is kept"
        start += count


def test_sort_and_unsort_with_gradients(new_batch):
    batch = new_batch(ROWS, padding=3)
    order = Plan.of(batch).order
    x_ND = torch.randn(batch.tokens_BT.numel(), 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(order.sort(x_ND), x_ND[order.permutation_N])
    assert torch.equal(order.unsort(order.sort(x_ND)), x_ND)
    few = Order.of(torch.tensor([2, 0, 0, 2]), torch.tensor([False, False, True, False]), 3)
    assert (few.counts, few.real) == ((2, 0, 2), (1, 0, 2))
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(few.sort, x)
    assert torch.autograd.gradgradcheck(few.unsort, x)


def test_order_of_shared_parts_moves_nothing(new_batch):
    order = Plan.of(new_batch(ROWS)).order.unsorted()
    x_ND = torch.randn(sum(order.counts), 2)
    assert order.sort(x_ND) is order.unsort(x_ND) is x_ND
    assert len(order.counts) == 1


def test_targets_by_modality(new_batch):
    batch = new_batch(ROWS, padding=3)
    plan = Plan.of(batch)
    rows_J = plan.target_rows_J
    assert sorted(rows_J.tolist()) == batch.loss_mask_BT.flatten().nonzero().flatten().tolist()
    assert torch.equal(plan.targets_J, batch.targets_BT.flatten()[rows_J])
    modality_J = batch.target_modality_BT.flatten()[rows_J]
    assert modality_J.tolist() == sorted(modality_J.tolist())
    assert plan.target_counts == tuple(np.bincount(modality_J, minlength=3).tolist())


def test_documents_start_where_the_number_changes(new_batch):
    batch = new_batch(ROWS, padding=3)
    reset_BT = Plan.of(batch).reset_BT
    starts_BT = (batch.position_BT == 0) & ~batch.padding_BT
    assert reset_BT[~batch.padding_BT].equal(starts_BT[~batch.padding_BT])
    assert reset_BT.sum().item() == 5 + 3


def test_the_sorted_layout_is_the_layout_of_the_order(new_batch):
    plan = Plan.of(new_batch(ROWS, padding=3))
    order, layout, moved = plan.order, plan.layout, plan.sorted_layout
    assert torch.equal(order.permutation_N[moved.index_P], layout.index_P)
    assert torch.equal(moved.inverse_N[order.inverse_N], layout.inverse_N)
    assert torch.equal(order.permutation_N[moved.padding_N], layout.padding_N)
    assert moved.buckets == layout.buckets


def test_plan_moves_to_another_device(new_batch):
    plan = Plan.of(new_batch(ROWS))
    moved = plan.to("meta")
    tensors = (moved.document_BT, moved.order.inverse_N, moved.layout.index_P, moved.targets_J)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.order.counts == plan.order.counts
    assert moved.target_counts == plan.target_counts


def test_plan_of_packed_rows_is_the_plan_of_each(new_batch):
    both, first, second = (Plan.of(new_batch(rows)) for rows in (ROWS[:1] * 2, ROWS[:1], ROWS[:1]))
    assert both.order.counts != first.order.counts
    assert len(both.target_rows_J) == len(first.target_rows_J) + len(second.target_rows_J)


@pytest.mark.parametrize("modalities", [("text",), ("image",)])
def test_absent_modalities_count_nothing(modalities, new_batch):
    order = Plan.of(new_batch(ROWS, modalities=modalities)).order
    present = ("text", "image", "speech").index(modalities[0])
    assert [m for m, n in enumerate(order.real) if n] == [present]
