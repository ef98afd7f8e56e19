"""Distributed data parallel, in the shape of PyTorch's tutorial "Multi GPU training with torchrun", on CPUs."""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class RegressionDataset(Dataset):
    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 20, generator=generator)
        self.y = self.x.sum(1, keepdim=True) + 0.1 * torch.randn(size, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


def ddp_setup() -> None:
    init_process_group(backend="gloo")


class Trainer:
    def __init__(self, model: torch.nn.Module, data: DataLoader, snapshot_path: str, pause: float) -> None:
        self.global_rank = int(os.environ["RANK"])
        self.data = data
        self.pause = pause
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        self.model = model
        self.epochs_run = 0
        self.snapshot_path = snapshot_path
        if os.path.exists(snapshot_path):
            print(f"Loading snapshot {snapshot_path}")
            self._load_snapshot(snapshot_path)
        self.model = DDP(self.model)

    def _load_snapshot(self, snapshot_path: str) -> None:
        snapshot = torch.load(snapshot_path)
        self.model.load_state_dict(snapshot["MODEL_STATE"])
        self.epochs_run = snapshot["EPOCHS_RUN"]
        print(f"Resuming training from snapshot at Epoch {self.epochs_run}")

    def _run_batch(self, source: torch.Tensor, targets: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(source), targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _run_epoch(self, epoch: int) -> float:
        self.data.sampler.set_epoch(epoch)
        return [self._run_batch(source, targets) for source, targets in self.data][-1]

    def _save_snapshot(self, epoch: int) -> None:
        snapshot = {"MODEL_STATE": self.model.module.state_dict(), "EPOCHS_RUN": epoch + 1}
        torch.save(snapshot, f"{self.snapshot_path}.part")
        os.replace(f"{self.snapshot_path}.part", self.snapshot_path)
        print(f"Epoch {epoch} | Training snapshot saved at {self.snapshot_path}")

    def train(self, max_epochs: int, die_at: int | None) -> float:
        loss = float("nan")
        for epoch in range(self.epochs_run, max_epochs):
            loss = self._run_epoch(epoch)
            if self.global_rank == 0:
                self._save_snapshot(epoch)
            torch.distributed.barrier()
            if epoch == die_at and self.global_rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), 9)
            time.sleep(self.pause)
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description="simple distributed training job")
    parser.add_argument("total_epochs", type=int)
    parser.add_argument("--batch_size", default=32, type=int)
    parser.add_argument("--die_at", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    ddp_setup()
    dataset = RegressionDataset(512)
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=False, sampler=DistributedSampler(dataset))
    trainer = Trainer(torch.nn.Linear(20, 1), loader, "snapshot.pt", args.pause)
    loss = trainer.train(args.total_epochs, args.die_at)
    if trainer.global_rank == 0:
        os.makedirs("outputs", exist_ok=True)
        with open("outputs/result.json", "w") as file:
            json.dump({"loss": loss, "restarts": os.environ["TORCHELASTIC_RESTART_COUNT"]}, file)
        torch.save(trainer.model.module.state_dict(), "outputs/model.pt")
    destroy_process_group()


if __name__ == "__main__":
    main()
