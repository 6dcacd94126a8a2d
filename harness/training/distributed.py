"""One run in several processes, each with a shard of every batch, and the same interface for a single process.

`torchrun` starts the processes. Each takes a shard of the same batch that a single process would take. Gradients are
averaged by torch's DistributedDataParallel; metrics are sums over all processes that are divided once.

Source: https://docs.pytorch.org/docs/stable/notes/ddp.html
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.utils import environment
from harness.utils.errors import HarnessError, PeerLostError, UsageError
from harness.utils.signals import die_with_parent

T = TypeVar("T")


class SingleProcess:
    """A run in one process, where every exchange between processes does nothing.

    Attributes:
        rank: 0 to world_size - 1; only the main process, of rank 0, writes and uses W&B.
        world_size: number of processes.
    """

    rank, world_size = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0

    @property
    def rank_key(self) -> tuple[int, ...]:
        """Keys that make a seed differ between processes; none for the main one, which draws as a single process does."""
        return () if self.is_main else (self.rank,)

    def shard(self, num_items: int, /) -> slice:
        """Return the items of this process: the shards are as equal as possible, disjoint and complete."""
        return slice(self.rank * num_items // self.world_size, (self.rank + 1) * num_items // self.world_size)

    def wrap_ddp(self, model: nn.Module) -> nn.Module | None:
        """Return the model wrapped so that gradients are averaged over all processes; None in a single process."""
        return None

    def all_reduce_sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return each of some tensors [] summed over all processes, on its device, without waiting for it."""
        return values

    def average_buffers(self, *modules: nn.Module | None) -> None:
        """Average the running statistics over all processes, so that all evaluate and save the same model."""

    def broadcast(self, value: T) -> T:
        """Return the main process's value, a plain one or tensors on the CPU."""
        return value

    def reduce_stop_flag(self, signal_number: int) -> int:
        """Return the largest signal number of all processes; with several processes, of the previous call."""
        return signal_number

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the context in the first process of each machine before the others, for example a download."""
        yield

    @contextlib.contextmanager
    def report_peer_failure(self) -> Iterator[None]:
        """Raise `PeerLostError` for connection errors in the context that another process's end has caused."""
        yield

    def close(self) -> None:
        """Close the connections to the other processes."""


class DistributedContext(SingleProcess):
    """This process among the others that torchrun started.

    Args:
        device: of this process.
        timeout: seconds that the processes wait for each other.
    """

    def __init__(self, device: torch.device, timeout: float) -> None:
        import torch.distributed as dist

        timeout_delta = datetime.timedelta(seconds=timeout)
        store, self.rank, self.world_size = next(iter(dist.rendezvous("env://", timeout=timeout_delta)))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device = device
        self._notes = dist.PrefixStore("harness", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("ranks", store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timeout_delta,
            device_id=device if device.type == "cuda" else None,
        )
        self._control: Any = dist.new_group(backend="gloo", timeout=timeout_delta)
        self._pending_flag: tuple[Any, Tensor] | None = None
        self._notes.set(f"process/{self.rank}", f"{socket.gethostname()} {os.getpid()}")

    def wrap_ddp(self, model: nn.Module) -> nn.Module | None:
        from torch.nn.parallel import DistributedDataParallel

        ids = [self._device.index] if self._device.type == "cuda" else None
        # Running statistics are averaged before they are used, instead of being overwritten by the main process's in every
        # step. The argument has another name from torch 2.14 on.
        is_renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if is_renamed else "broadcast_buffers": False}
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **options)

    def all_reduce_sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        import torch.distributed as dist

        totals = torch.stack([value.detach().double() for value in values])
        dist.all_reduce(totals)
        return tuple(total.to(value.dtype) for total, value in zip(totals, values, strict=True))

    def average_buffers(self, *modules: nn.Module | None) -> None:
        import torch.distributed as dist

        buffers = [b for module in modules if module is not None for b in module.buffers() if b.is_floating_point()]
        if not buffers:
            return
        # In double precision, so that the mean of equal values is bit-identical to them.
        flat = torch.cat([buffer.detach().double().flatten() for buffer in buffers])
        dist.all_reduce(flat)
        means = (flat / self.world_size).split([buffer.numel() for buffer in buffers])
        with torch.no_grad():
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def broadcast(self, value: T) -> T:
        import torch.distributed as dist

        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]  # type: ignore[return-value]

    def reduce_stop_flag(self, signal_number: int) -> int:
        import torch.distributed as dist

        previous = self._wait_for_flag()
        flag = torch.tensor([signal_number])
        # The reduction runs while the next update is computed; its result is read by the next call.
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._pending_flag = (work, flag)
        return previous

    def _wait_for_flag(self) -> int:
        if self._pending_flag is None:
            return 0
        work, flag = self._pending_flag
        work.wait()
        self._pending_flag = None
        return int(flag)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        if self.local_rank:
            self._barrier()
        yield
        if not self.local_rank:
            self._barrier()

    def _barrier(self) -> None:
        import torch.distributed as dist

        dist.barrier(group=self._control)

    @contextlib.contextmanager
    def report_peer_failure(self) -> Iterator[None]:
        try:
            yield
        except HarnessError as error:
            self._leave_note(str(error))
            raise
        except Exception as error:
            if not _is_connection_error(error):
                self._leave_note(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                raise
            raise self._peer_lost(error) from error

    def _leave_note(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the store may be gone with its process
            self._notes.set(f"error/{self.rank}", text)

    def _peer_lost(self, error: Exception) -> PeerLostError:
        """Return the error that names the process that ended, with the reason where it is known."""
        peers = [rank for rank in range(self.world_size) if rank != self.rank]
        for rank in peers:
            if reason := self._note_of(rank):
                return PeerLostError(f"rank {rank} of {self.world_size} ended: {reason}", is_reported=rank == 0)
        for rank in peers:
            if self._has_ended(rank):
                return PeerLostError(
                    f"rank {rank} of {self.world_size} ended without an error message (killed, most often for lack of memory); the same command resumes from the last checkpoint"
                )
        reason = " ".join(str(error).split())[:200]
        return PeerLostError(
            f"rank {self.rank} lost its connection to the other processes: {reason}; the same command resumes from the last checkpoint"
        )

    def _note_of(self, rank: int) -> str:
        try:
            key = f"error/{rank}"
            return self._notes.get(key).decode() if self._notes.check([key]) else ""
        except Exception:  # noqa: BLE001 - the store is gone
            return ""

    def _has_ended(self, rank: int) -> bool:
        """Return whether a process of this machine has ended, even if its parent has not waited for it yet."""
        try:
            host, pid = self._notes.get(f"process/{rank}").decode().split()
        except Exception:  # noqa: BLE001 - as above
            return False
        if host != socket.gethostname():
            return False
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return not Path(f"/proc/{pid}").exists()
        return state in "ZX"

    def close(self) -> None:
        import torch.distributed as dist

        with contextlib.suppress(Exception):  # the connection is lost
            self._wait_for_flag()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def init_distributed(device: str, timeout: float) -> SingleProcess:
    """Return this process's part in a run that torchrun started, or `SingleProcess` without torchrun.

    Args:
        device: the setting; `auto` and `cuda` become the GPU of the local rank.
        timeout: seconds that the processes wait for each other.

    Raises:
        UsageError: there are more processes than GPUs, or the setting names one device for all processes.
    """
    if environment.world_size() == 1:
        return SingleProcess()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a killed torchrun does not end its processes
        die_with_parent()
    process_device = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        if device not in ("auto", "cuda"):
            raise UsageError(f"device={device!r} is one device for all processes; under torchrun leave --device out")
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(f"torchrun started more processes than this machine has GPUs; use --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
        process_device = torch.device("cuda", local)
    return DistributedContext(process_device, timeout)


def _is_connection_error(error: Exception) -> bool:
    """Return whether gloo, NCCL or the store raise such an exception when another process has ended."""
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
