"""What surrounds the steps of a training: batches, seeds, progress, signals and saves."""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from torch_softmax.fashion.data import Data
from torch_softmax.fashion.errors import LossError, StoppedError
from torch_softmax.fashion.interruption import deferred_signals
from torch_softmax.fashion.processes import rank, reduce_loss, shard
from torch_softmax.fashion.train_state import (
    TrainState,
    describe_epoch,
    describe_progress,
    log,
    progress_bar,
)


class Session(ExitStack):
    """The steps from where a state stands to the end of the training.

    It saves after each epoch, after every so many steps, and when a signal asks it to stop.
    """

    def __init__(
        self,
        state: TrainState,
        data: Data,
        options: argparse.Namespace,
        save: Callable[[], None],
    ) -> None:
        super().__init__()
        self.state = state
        self.data = data
        self.options = options
        self.save = save
        self.n_batches = len(data.train.labels) // options.batch_size
        self.n_steps = options.epochs * self.n_batches
        self.step = len(state.step_losses)
        self.stop_signal = 0
        self.start = time.perf_counter() - state.seconds

    def batches(self) -> Iterator[Tensor]:
        """The indices of the images that this process takes, step by step."""
        size, seed = self.options.batch_size, self.options.seed
        self.bar = self.enter_context(progress_bar(self.state, self.n_steps, size))
        self.signals = self.enter_context(deferred_signals())
        order = None
        while self.step < self.n_steps:
            epoch, index = divmod(self.step, self.n_batches)
            if order is None or index == 0:
                set_seed(seed, epoch)
                order = torch.randperm(len(self.data.train.labels))
                order = order.to(self.data.train.labels.device)
                # short, so that a line of 80 characters holds the bar
                drawn = "[drawn] " * bool(self.data.prefix)
                self.bar.set_description(f"{drawn}epoch {epoch + 1}/{self.options.epochs}")
            set_seed(seed, epoch, index, rank())
            yield shard(order[index * size :][:size])
            self._end_step()

    def record(self, loss: Tensor) -> None:
        """Record the loss of a step in all processes, before the step changes the weights.

        Raises:
            LossError: The mean loss of all processes is not finite.
        """
        # waits for the device, so a loss that is not finite never reaches the weights
        mean_loss, self.stop_signal = reduce_loss(loss.item(), self.signals)
        self.state.step_losses.append(mean_loss)
        if not math.isfinite(mean_loss):
            raise LossError(
                f"training needs a finite loss, got {mean_loss} "
                f"at step {self.step + 1} of {self.n_steps}: lower --lr"
            )

    @property
    def epoch_ends(self) -> bool:
        """Whether this step is the last of its epoch."""
        return (self.step + 1) % self.n_batches == 0

    def end_epoch(self, accuracy: float) -> None:
        """Record and print the test accuracy after the last step of an epoch."""
        self.state.end_epoch(self.n_batches, accuracy)
        self.state.seconds = time.perf_counter() - self.start
        n_images = self.n_batches * self.options.batch_size
        log(describe_epoch(self.state, self.options.epochs, n_images), prefix=self.data.prefix)

    def _end_step(self) -> None:
        self.bar.set_postfix_str(describe_progress(self.state), refresh=False)
        self.bar.update(self.options.batch_size)
        self.state.seconds = time.perf_counter() - self.start
        is_due = (self.step + 1) % (self.options.save_every or self.n_steps) == 0
        if self.epoch_ends or self.stop_signal or is_due:
            self.save()
        self.step += 1
        if self.stop_signal:
            raise StoppedError(self.stop_signal, f"after step {self.step} of {self.n_steps}")


def set_seed(*numbers: int) -> None:
    """Make all randomness that follows a function of the numbers.

    Training does so at each step: a run that continues from a checkpoint draws what it would have
    drawn, and no state of a generator is saved.
    """
    # hashed, because a generator on the CPU keeps 32 bits, and similar seeds give similar numbers
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    seed = int.from_bytes(digest[:4])
    # torch.manual_seed formats a stack for each kind of device that is missing: 0.6 ms a step
    torch.default_generator.manual_seed(seed)
    if torch.accelerator.is_available():
        torch.get_device_module().manual_seed(seed)
