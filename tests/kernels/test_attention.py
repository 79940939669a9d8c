import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import attention as attention_module
from plait.kernels.attention import AttentionLayout, attention, reference
from plait.kernels.permute import permute_rows

from .check import check


def rows(*lengths, seq_len, batch=1):
    """Documents of those lengths in each row, then padding."""
    numbers = [i for i, length in enumerate(lengths) for _ in range(length)]
    row = numbers + [-1] * (seq_len - len(numbers))
    return torch.tensor([row] * batch, dtype=torch.int32)


def qkv(document_BT, heads=2, size=4):
    torch.manual_seed(0)
    return [torch.randn(*document_BT.shape, heads, size) for _ in range(3)]


def compare(document_BT, **options):
    """The gradients of a document of one position are zero, or what rounding leaves of it."""
    layout = AttentionLayout.of(document_BT)
    check(
        lambda q, k, v: attention(q, k, v, layout),
        lambda q, k, v: reference(q, k, v, document_BT),
        qkv(document_BT),
        floor=0.1,
        **options,
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(1, 70), max_size=5).filter(lambda row: sum(row) <= 150),
        min_size=1,
        max_size=3,
    )
)
def test_equals_the_definition(lengths):
    compare(torch.cat([rows(*row, seq_len=150) for row in lengths]))


@pytest.mark.parametrize("lengths", [(1000,), (63, 937), (1, 998, 1), (1,)])
def test_odd_lengths(lengths):
    compare(rows(*lengths, seq_len=sum(lengths), batch=2))


@pytest.mark.parametrize(
    ("document_BT", "even"),
    [
        (rows(16, 16, 16, seq_len=48, batch=2), (6, 16)),
        (rows(48, seq_len=48, batch=2), (2, 48)),
        (rows(16, 16, 16, seq_len=49, batch=2), None),  # padding
        (rows(16, 15, 17, seq_len=48, batch=2), None),
        (rows(seq_len=4), None),
    ],
)
def test_documents_as_long_as_each_other_stay_where_they_stand(document_BT, even):
    assert AttentionLayout.of(document_BT).even == even
    compare(document_BT)


def test_padding_before_and_between_documents():
    compare(torch.tensor([[-1, -1, 0, 0, -1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, -1]]))


@pytest.mark.parametrize("lengths", [(30, 34, 3), (70,)])
@pytest.mark.parametrize("path", ["buckets", "reference"])
def test_positions_in_another_order(path, lengths, monkeypatch):
    """What attends to what is as before, wherever the positions stand."""
    monkeypatch.setattr(attention_module, "choose", lambda op, fast: path)
    document_BT = rows(*lengths, seq_len=70, batch=2)
    permutation_N = torch.randperm(140)
    order = permutation_N, permutation_N.argsort()
    layout = AttentionLayout.of(document_BT).sorted(*order)

    def moved(*qkv):
        o_BTHK = attention(*(permute_rows(x, *order) for x in qkv), layout)
        return permute_rows(o_BTHK, *order[::-1])

    check(moved, lambda q, k, v: reference(q, k, v, document_BT), qkv(document_BT))


def test_compiles():
    compare(rows(5, 9, 40, 3, seq_len=64, batch=2), compiled=True)
    compare(rows(8, 8, seq_len=16, batch=2), compiled=True)


def test_a_document_cannot_see_another():
    document_BT = rows(30, 34, seq_len=70)
    layout, (q, k, v) = AttentionLayout.of(document_BT), qkv(document_BT)
    expected = attention(q, k, v, layout)
    for x in (q, k, v):
        x[:, :30] = torch.nan
    assert torch.equal(attention(q, k, v, layout)[:, 30:], expected[:, 30:])


def test_padding_may_hold_anything():
    document_BT = rows(30, seq_len=40, batch=2)
    layout, (q, k, v) = AttentionLayout.of(document_BT), qkv(document_BT)
    for x in (q, k, v):
        x[:, 30:] = torch.nan
        x.requires_grad_()
    o = attention(q, k, v, layout)
    assert o[:, 30:].abs().max() == 0
    o[:, :30].sum().backward()
    for x in (q, k, v):
        assert x.grad.isfinite().all()
        assert x.grad[:, 30:].abs().max() == 0


def test_a_row_does_not_depend_on_its_batch_mates():
    one, two = rows(30, 33, seq_len=64), rows(9, 8, 40, seq_len=64)
    both = torch.cat([one, two])
    x = qkv(both)
    together = attention(*x, AttentionLayout.of(both))
    alone = attention(*(t[:1] for t in x), AttentionLayout.of(one))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_buckets_waste_little():
    torch.manual_seed(0)
    document_BT = torch.cat(
        [rows(*torch.randint(1, 200, (10,)).tolist(), seq_len=2000) for _ in range(8)]
    )
    layout = AttentionLayout.of(document_BT)
    assert len(layout.buckets) < 12
    assert len(layout.empty_P) < 0.35 * len(layout.index_P)


def test_tiles_cover_each_document_and_those_with_most_keys_come_first():
    layout = AttentionLayout.of(torch.cat([rows(300, 128, seq_len=440), rows(1, seq_len=440)]))
    start, end, first = layout.tile_G3.unbind(1)
    assert sorted(zip(start.tolist(), end.tolist(), first.tolist(), strict=True)) == [
        (0, 300, 0), (0, 300, 128), (0, 300, 256), (300, 428, 300), (440, 441, 440),
    ]  # fmt: skip
    assert (first - start).tolist() == [256, 128, 0, 0, 0]


def test_refuses_a_split_document_and_other_shapes():
    with pytest.raises(ValueError, match="contiguous"):
        AttentionLayout.of(torch.tensor([[0, 1, 0]]))
    layout = AttentionLayout.of(rows(5, seq_len=5))
    with pytest.raises(ValueError, match="layout is of rows"):
        attention(*qkv(rows(6, seq_len=6)), layout)
