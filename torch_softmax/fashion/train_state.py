"""What training changes, and how it shows its progress."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from torch_softmax.fashion.processes import rank


@dataclass
class TrainState:
    """All that training changes: with it and the flags, a run continues as if never stopped."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    step_losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    epoch_accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def history(self) -> list[dict[str, float]]:
        """Loss and accuracy of each epoch."""
        epochs = zip(self.epoch_losses, self.epoch_accuracies, strict=True)
        return [
            {"epoch": number, "loss": loss, "accuracy": accuracy}
            for number, (loss, accuracy) in enumerate(epochs, start=1)
        ]

    def end_epoch(self, n_steps: int, accuracy: float) -> None:
        """Record an epoch whose steps are done."""
        self.epoch_losses.append(sum(self.step_losses[-n_steps:]) / n_steps)
        self.epoch_accuracies.append(accuracy)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step_losses": self.step_losses,
            "epoch_losses": self.epoch_losses,
            "epoch_accuracies": self.epoch_accuracies,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step_losses = state["step_losses"]
        self.epoch_losses = state["epoch_losses"]
        self.epoch_accuracies = state["epoch_accuracies"]
        self.seconds = state["seconds"]


def log(*lines: str, prefix: str = "") -> None:
    """Print above the progress bar, at once even into a pipe; in the first process only."""
    if rank() == 0:
        for line in lines:
            tqdm.write(prefix + line)
        sys.stdout.flush()


def progress_bar(state: TrainState, n_steps: int, batch_size: int) -> tqdm:
    """A bar that counts images, shown on a terminal only."""
    return tqdm(
        total=n_steps * batch_size,
        initial=len(state.step_losses) * batch_size,
        unit=" images",
        unit_scale=True,
        # a terminal that does not report its height, such as that of script(1), would get no bar
        nrows=24,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
        leave=False,
        disable=None if rank() == 0 else True,
    )


def describe_progress(state: TrainState) -> str:
    """The loss of the last 50 steps and the last test accuracy, short enough for the bar."""
    losses = state.step_losses[-50:]
    accuracy = "".join(f", test {accuracy:.1%}" for accuracy in state.epoch_accuracies[-1:])
    return f"loss {sum(losses) / len(losses):.3f}{accuracy}"


def describe_epoch(state: TrainState, epochs: int, images_per_epoch: int) -> str:
    """The results of the last epoch, the speed, and the time that is left."""
    epoch, loss, accuracy = state.history()[-1].values()
    seconds_per_epoch = state.seconds / epoch
    return (
        f"epoch {epoch:2}/{epochs}  loss {loss:.4f}  test accuracy {accuracy:.2%}  "
        f"{images_per_epoch / seconds_per_epoch:,.0f} images/s  "
        f"ETA {seconds_per_epoch * (epochs - epoch):.0f} s"
    )
