"""The measurements of a run, and their JSON file."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch_softmax._atomic_file import write_atomically
from torch_softmax._command_line import UserError
from torch_softmax.benchmark.timing import Spread

# by preference: a table shows the first clock that a measurement has
CLOCKS = ("graph", "events", "wall")


@dataclass(frozen=True)
class Measurement:
    """One provider on one case; if it failed, ``times`` is empty and ``failure`` is the reason."""

    operator: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    ignored: float
    threads: int | None  # None on a GPU
    provider: str
    floor_bytes: int
    copy_bandwidth: float  # bytes read and written per second, in the same run
    times: dict[str, Spread] = field(default_factory=dict)  # seconds by clock
    first_call: float | None = None  # seconds
    peak_bytes: int | None = None  # beyond the inputs
    syncs: int | None = None  # per call, on a GPU
    failure: str | None = None

    @property
    def clock(self) -> str:
        """The clock of the time in the table."""
        return next(clock for clock in CLOCKS if clock in self.times)

    @property
    def seconds(self) -> float:
        """The median time."""
        return self.times[self.clock].median

    @property
    def bandwidth(self) -> float:
        """Bytes of the floor per second."""
        return self.floor_bytes / self.seconds

    @property
    def share_of_copy(self) -> float:
        return self.bandwidth / self.copy_bandwidth

    @property
    def case(self) -> tuple[Any, ...]:
        """The key of measurements that may be compared."""
        return (self.operator, self.threads, self.ignored, self.shape, self.dtype, self.mode)


@dataclass
class Report:
    """A run: machine, command, settings and measurements."""

    machine: dict[str, str]
    command: str
    settings: dict[str, int]
    measurements: list[Measurement] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write JSON atomically."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read a file that ``save`` wrote."""
        try:
            content = json.loads(path.read_text())
            measurements = [
                Measurement(
                    **entry
                    | {
                        "shape": tuple(entry["shape"]),
                        "times": {name: Spread(**time) for name, time in entry["times"].items()},
                    }
                )
                for entry in content.pop("measurements")
            ]
            return cls(**content, measurements=measurements)
        except OSError as error:
            raise UserError(f"argument --from-json: {error.strerror}: {path}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"argument --from-json: needs a file that --json wrote, got {path}: {error!r}"
            ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the relevant packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "liger-kernel", "quack-kernels"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
