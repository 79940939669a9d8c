import pytest
import torch

from plait.models.training.optimizer import Optimizer, OptimizerConfig
from plait.models.values import TableOptimizer, ValueTable
from plait.tokenizers.errors import ConfigError

from .conftest import CONFIGS


def made_table(rows=50, width=6):
    torch.manual_seed(0)
    table = ValueTable(rows, width)
    table.reset_parameters()
    return table


def read(table, seed, rows=None):
    """A reading with a loss, so that the ledger has its gradient; returns the rows read."""
    generator = torch.Generator().manual_seed(seed)
    slot_NJ = torch.randint(rows or len(table.weight), (20, 3), generator=generator)
    share_NJ = torch.rand(20, 3, generator=generator).requires_grad_()
    table.read(slot_NJ, share_NJ).square().sum().backward()
    return slot_NJ.unique()


def test_rows_that_were_not_read_are_not_touched():
    table = made_table()
    optimizer, before = TableOptimizer(table, weight_decay=0.1), table.weight.detach().clone()
    rows = read(table, 0, rows=20)
    assert optimizer.norm() > 0
    optimizer.step(0.1)
    moved = (table.weight != before).any(1).nonzero().squeeze(1)
    assert torch.equal(moved, rows)
    assert table.weight.grad is None and optimizer.norm() == 0.0


def test_decay_is_made_up_for_when_a_row_is_read_again():
    table, lr = made_table(), 0.01
    optimizer = TableOptimizer(table, weight_decay=0.5)
    read(table, 0)
    optimizer.norm()
    optimizer.step(lr)
    after_first = table.weight.detach().clone()
    for _ in range(9):
        assert optimizer.norm() == 0
        optimizer.step(lr)
    assert torch.equal(table.weight, after_first)
    optimizer.mean_RD.zero_()
    leaf = torch.zeros(1, 1, requires_grad=True)
    table.read(torch.tensor([[3]]), leaf).sum().backward()
    optimizer.norm()
    optimizer.step(lr, scale=0.0)
    torch.testing.assert_close(table.weight[3], after_first[3] * torch.tensor(-0.05).exp())


def test_a_restored_optimizer_goes_on_alike():
    results = []
    for stop in (None, 2):
        table = made_table()
        optimizer = TableOptimizer(table, weight_decay=0.3)
        for step in range(5):
            if step == stop:
                state = {k: v.clone() for k, v in optimizer.state_tensors().items()}
                optimizer = TableOptimizer(table, weight_decay=0.3)
                optimizer.load_state_tensors(state)
            read(table, step)
            optimizer.norm()
            optimizer.step(0.05)
        results.append(table.weight.detach().clone())
    assert torch.equal(*results)


def test_a_frozen_table_notes_nothing():
    table = made_table()
    table.weight.requires_grad_(False)
    read(table, 0)
    assert not table.ledger.readings


def test_a_table_of_ones_own_optimizer():
    table = made_table()
    rows = read(table, 0)
    table.weight.grad = table.gradient()
    table.ledger.clear()
    before = table.weight.detach().clone()
    torch.optim.SGD([table.weight], lr=1.0).step()
    assert torch.equal((table.weight != before).any(1).nonzero().squeeze(1), rows)
    assert table.gradient()._nnz() == 0


def steps_of(decoder, new_batch, steps, micro=2):
    """Losses of some steps of two micro-batches."""
    optimizer, losses = Optimizer(decoder, OptimizerConfig(lr=0.01)), []
    for _ in range(steps):
        optimizer.zero_grad()
        for number in range(micro):
            loss = decoder.loss(new_batch([[9, 5], [12]], seed=number)).sum_M.sum()
            loss.backward()
            losses.append(loss.item())
        assert optimizer.clip() > 0
        optimizer.step(1.0)
    return losses, optimizer


def test_a_decoder_learns_with_it_and_the_table_has_no_dense_gradient(new_decoder, new_batch):
    decoder = new_decoder(CONFIGS["memory"]).train()
    before = decoder.values.weight.detach().clone()
    losses, optimizer = steps_of(decoder, new_batch, 30)
    assert losses[-1] < 0.5 * losses[0]
    assert decoder.values.weight.grad is None
    assert not torch.equal(decoder.values.weight, before)
    assert all(parameter is not decoder.values.weight for parameter in optimizer.adam.state)


def test_the_optimizers_state_is_named_and_comes_back(new_decoder, new_batch):
    decoder = new_decoder(CONFIGS["memory"]).train()
    _, optimizer = steps_of(decoder, new_batch, 2)
    tensors = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    other = Optimizer(decoder, OptimizerConfig(lr=0.01))
    other.load_state_tensors(tensors)
    found = other.state_tensors()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], t) for name, t in tensors.items())
    with pytest.raises(ConfigError, match="other parameters"):
        Optimizer(new_decoder(CONFIGS["dense"]), OptimizerConfig()).load_state_tensors(tensors)


def test_it_compiles_whole():
    table = made_table()
    slot, share = torch.randint(50, (20, 3)), torch.rand(20, 3)
    results = []
    for read in (table.read, torch.compile(table.read, fullgraph=True, backend="aot_eager")):
        leaf = share.clone().requires_grad_()
        y = read(slot, leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, table.gradient().to_dense()))
        table.ledger.clear()
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)
