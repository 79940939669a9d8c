"""Rows as the dataset of other people's trainers, where these are installed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from plait.pipeline.rows import Rows

from .made_stream import random_stream


@pytest.fixture
def rows(tmp_path):
    return Rows(random_stream(tmp_path, documents=60)[0], seq_len=48)


class Tiny(nn.Module):
    """The least model that takes a batch; it keeps the tokens that it saw."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 8)
        self.seen = []

    def forward(self, tokens, loss_mask, **others):
        self.seen.append(tokens)
        assert others["document"].shape == tokens.shape == loss_mask.shape
        scores = self.table(tokens[:, :-1]) @ self.table.weight.T
        loss = nn.functional.cross_entropy(scores.transpose(1, 2), tokens[:, 1:], reduction="none")
        return {"loss": loss[loss_mask[:, :-1]].mean()}


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_takes_rows(rows, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = Tiny(rows.vocabulary.size)
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        max_steps=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    transformers.Trainer(model=model, args=options, train_dataset=rows).train()
    assert len(model.seen) == 3
    known = {rows[i].tokens.tobytes() for i in range(len(rows))}
    assert all(row.numpy().tobytes() in known for tokens in model.seen for row in tokens)


@pytest.mark.filterwarnings("ignore")
def test_lightning_takes_rows(rows, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Tiny(rows.vocabulary.size)

        def training_step(self, batch, _):
            return self.model(batch.tokens_BT, batch.loss_mask_BT, document=batch.document_BT)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=4))
    want = [rows.batch(range(4 * step, 4 * step + 4)).tokens_BT for step in range(3)]
    assert all(map(torch.equal, module.model.seen, want))
