#!/bin/sh
# lightning 2.6.6 (torch 2.15.0): with max_steps, resuming at the end of an epoch without a validation adds a batch to that epoch.
#
# Expected: a checkpoint saved in on_train_epoch_end continues with the next epoch, whether training is limited by max_steps or max_epochs,
# and whether the epoch ended with a validation or not.
#
# Observed: with check_val_every_n_epoch=2 and max_steps, the resumed run calls training_step for a fifth batch of an epoch of four, and
# stays one batch behind from then on. With max_epochs, or with a validation after each epoch, it continues as expected. No warning.
#
#   validation every 1 epoch(s), max_steps=8   next batches (1, 0) (1, 1) (1, 2) (1, 3)
#   validation every 1 epoch(s), max_epochs=2  next batches (1, 0) (1, 1) (1, 2) (1, 3)
#   validation every 2 epoch(s), max_steps=8   next batches (0, 4) (1, 0) (1, 1) (1, 2)
#   validation every 2 epoch(s), max_epochs=2  next batches (1, 0) (1, 1) (1, 2) (1, 3)
#
# Affected: resumed runs that validate every few epochs or never: other batches, schedules per epoch shifted by a step, and a
# batch index that the epoch does not have.
# Workaround: validate after each epoch in which a checkpoint is saved, or limit by max_epochs.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check lightning==2.6.6 torch==2.15.0 numpy==2.3.5
cd "$folder"
OMP_NUM_THREADS=1 "$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Steps(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches = []

    def training_step(self, batch, index):
        self.batches.append((self.current_epoch, index))
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveAfterFirstEpoch(L.Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint("first.ckpt")


def fit(every, limit, checkpoint=None):
    module = Steps()
    data = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=1)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        check_val_every_n_epoch=every, callbacks=[] if checkpoint else [SaveAfterFirstEpoch()], **limit)  # fmt: skip
    trainer.fit(module, data, data, ckpt_path=checkpoint)
    return module.batches


for every in (1, 2):
    for limit in ({"max_steps": 8}, {"max_epochs": 2, "max_steps": -1}):
        undisturbed = fit(every, limit)[4:]
        resumed = fit(every, limit, "first.ckpt")
        name = "max_steps=8 " if limit["max_steps"] == 8 else "max_epochs=2"
        print(f"validation every {every} epoch(s), {name} next batches", *resumed)
        assert undisturbed == [(1, index) for index in range(4)]
        surprising = every == 2 and limit["max_steps"] == 8
        assert resumed == ([(0, 4), (1, 0), (1, 1), (1, 2)] if surprising else undisturbed), "the behaviour has changed"
PY
