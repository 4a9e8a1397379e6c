"""Where the tasks of a study run: one after another in this process, in local processes, or on a Ray cluster.

A task is a picklable callable that takes a `Progress` and leaves its results in the study's folder, so that nothing but
notes travels back and a task that was lost with its worker can simply be run again. Results do not depend on the
engine; they are equal to the last bit where the number of threads per task is equal.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from manyeyes.device import resolve_device
from manyeyes.errors import ConfigError
from manyeyes.progress import Progress, Silent

WEIGHTS = "MANYEYES_WEIGHTS"


class Task(Protocol):
    def __call__(self, progress: Progress) -> None: ...


class LostWorker(Exception):
    """A worker died under its task, as the killed and those out of memory do; the others' tasks may be lost too."""


@dataclass
class Notes(Silent):
    """Keeps what a task says until it can be said where somebody sits."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)


def noted(task: Task) -> list[str]:
    """What a worker runs. Returns: what the task has said."""
    notes = Notes()
    task(notes)
    return notes.said


class Engine(ABC):
    """Runs tasks, in any order. ``threads`` is how many each may use, None for as many as the libraries like."""

    threads: int | None = None

    def placed(self, device: str) -> str:
        """The device's name where the tasks run. Raises: ConfigError if they cannot have it."""
        return device

    @abstractmethod
    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[None]:
        """Run all tasks; yields once for each that is done.

        Raises: what a task raises; LostWorker if a worker died.
        """

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Let go of the workers."""


class Sequential(Engine):
    """One task after another, in this process."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[None]:
        for task in tasks:
            task(progress)
            yield

    def __exit__(self, *error: object) -> None:
        pass


class Processes(Engine):
    """Local processes by joblib (loky), which share the machine's cores evenly."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.threads = max(1, cores() // jobs)

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[None]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        with parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=self.threads):
            running = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            try:
                for said in running(delayed(noted)(task) for task in tasks):
                    _tell(said, progress)
                    yield
            except TerminatedWorkerError as error:
                raise LostWorker(str(error)) from None

    def __exit__(self, *error: object) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


class RayCluster(Engine):
    """A Ray cluster at ``address``, or one of this machine's cores with ``local``. Needs `pip install manyeyes[ray]`.

    Data, weights and the study's folder must lie under the same path on every machine. Ray itself runs a task anew
    whose worker was lost, three times by default. Where this process has a GPU and may use it, each task gets one.
    """

    def __init__(self, address: str, jobs: int = 0) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray: Ray is not installed; run `pip install manyeyes[ray]`, or use --jobs") from None
        self.ray: Any = ray
        self.address, self.jobs, self.cuda = address, jobs or cores(), False
        self.threads = max(1, cores() // self.jobs) if address == "local" else 1

    def placed(self, device: str) -> str:
        """What the device is here, it is on every worker, so that no cell is named after another's arithmetic."""
        found = resolve_device(device)
        if device != "auto" and found.index is not None:
            raise ConfigError(f"--device {device}: Ray gives every task a GPU of its own; use {found.type} with --ray")
        self.cuda = found.type == "cuda"
        return found.type

    def __enter__(self) -> Self:
        names = (WEIGHTS, "OMP_NUM_THREADS")
        settings = {"env_vars": {name: os.environ[name] for name in names if name in os.environ}}
        options: dict[str, Any] = {"runtime_env": settings, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            # A processor of Ray's is a slot, not a core.
            options |= {"num_cpus": self.jobs, "include_dashboard": False}
        try:
            self.ray.init(self.address, **options)
        except (ConnectionError, ImportError, RuntimeError, ValueError) as error:  # Ray's own, for a bad address too
            raise ConfigError(
                f"--ray {self.address}: no cluster answers there ({' '.join(str(error).split())[:160]}); "
                "expected local, auto, or an address such as ray://head:10001"
            ) from None
        return self

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[None]:
        ray = self.ray
        remote = ray.remote(noted).options(num_cpus=1, num_gpus=1 if self.cuda else 0)
        waiting = [remote.remote(task) for task in tasks]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                _tell(ray.get(done[0]), progress)
                yield
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the task's own error, without Ray's traceback around it
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError,
        ) as e:
            raise LostWorker(str(e)) from None
        finally:
            for task in waiting:
                ray.cancel(task, force=True)

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()


def engine_of(jobs: int = 1, ray: str | None = None) -> Engine:
    """The engine that the command line asks for. Raises: ConfigError if Ray is asked for and not installed."""
    if ray:
        return RayCluster(ray, jobs if jobs > 1 else 0)
    return Processes(jobs) if jobs > 1 else Sequential()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(said: Sequence[str], progress: Progress) -> None:
    for text in said:
        progress.say(text)
