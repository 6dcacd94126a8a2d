"""One run in several processes, each with its share of every batch; and one process alone, to which all of this is nothing.

`torchrun` starts the processes. A batch is what the optimizer sees, so each takes a part of the very batch that one process
would have taken. Gradients are averaged by torch's DistributedDataParallel, figures are sums that are divided once.

Source: https://docs.pytorch.org/docs/stable/notes/ddp.html
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.utils import environment
from harness.utils.errors import HarnessError, PeerLostError, UsageError
from harness.utils.signals import die_with_parent

T = TypeVar("T")
Share = Callable[[int], slice]  # of so many things in a row, those that are this process'


class SingleProcess:
    """One process: everything is its own, and there is nobody to ask.

    Attributes:
        rank: 0 to count - 1; the process of rank 0 leads: it alone writes and talks to W&B.
    """

    rank, world_size = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def rank_key(self) -> tuple[int, ...]:
        """What the seed of a draw of this process' own has beside those of the run; the leader draws as one alone."""
        return () if self.is_main else (self.rank,)

    def shard(self, things: int) -> slice:
        """This process' part of so many things in a row: as equal as can be, none twice, none left out."""
        return slice(self.rank * things // self.world_size, (self.rank + 1) * things // self.world_size)

    def wrap_ddp(self, model: nn.Module) -> nn.Module | None:
        """What averages the gradients over all processes; None: nothing is needed."""
        return None

    def all_reduce_sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each of some numbers [] summed over all processes, on its device, not waited for."""
        return values

    def average_buffers(self, *modules: nn.Module | None) -> None:
        """Have the running statistics of all processes averaged, so that all evaluate and save the same model."""

    def broadcast(self, value: T) -> T:
        """The leader's value, a plain one or tensors on the CPU."""
        return value

    def reduce_stop_flag(self, asked: int) -> int:
        """The greatest number that any process gave; of several processes, at the call before this one."""
        return asked

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """What the first process of each machine does before the others (it may download)."""
        yield

    @contextlib.contextmanager
    def report_peer_failure(self) -> Iterator[None]:
        """While it lasts, the end of another process is told as what it is."""
        yield

    def close(self) -> None:
        """Take leave of the others."""


class DistributedContext(SingleProcess):
    """This process among the others that torchrun started."""

    def __init__(self, device: torch.device, timeout: float) -> None:
        import torch.distributed as dist

        self._limit = datetime.timedelta(seconds=timeout)
        store, self.rank, self.world_size = next(iter(dist.rendezvous("env://", timeout=self._limit)))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device = device
        self._notes = dist.PrefixStore("harness", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("ranks", store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=self._limit,
            device_id=device if device.type == "cuda" else None,
        )
        self._control: Any = dist.new_group(backend="gloo", timeout=self._limit)
        self._asking: tuple[Any, Tensor] | None = None
        self._notes.set(f"place/{self.rank}", f"{socket.gethostname()} {os.getpid()}")

    def wrap_ddp(self, model: nn.Module) -> nn.Module | None:
        from torch.nn.parallel import DistributedDataParallel

        ids = [self._device.index] if self._device.type == "cuda" else None
        # Running statistics are averaged before they are used, not overwritten by the leader's in every step. From torch
        # 2.14 on that has another name.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        own: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **own)

    def all_reduce_sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        import torch.distributed as dist

        together = torch.stack([value.detach().double() for value in values])
        dist.all_reduce(together)
        return tuple(total.to(value.dtype) for total, value in zip(together, values, strict=True))

    def average_buffers(self, *modules: nn.Module | None) -> None:
        import torch.distributed as dist

        buffers = [b for module in modules if module is not None for b in module.buffers() if b.is_floating_point()]
        if not buffers:
            return
        # In double precision: what is equal already comes back to the bit.
        together = torch.cat([buffer.detach().double().flatten() for buffer in buffers])
        dist.all_reduce(together)
        parts = (together / self.world_size).split([buffer.numel() for buffer in buffers])
        with torch.no_grad():
            for buffer, mean in zip(buffers, parts, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def broadcast(self, value: T) -> T:
        import torch.distributed as dist

        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]  # type: ignore[return-value]

    def reduce_stop_flag(self, asked: int) -> int:
        import torch.distributed as dist

        agreed = self._answer()
        number = torch.tensor([asked])
        # Begun now, read at the next call: the answer travels while the next update is computed.
        work = dist.all_reduce(number, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._asking = (work, number)
        return agreed

    def _answer(self) -> int:
        if self._asking is None:
            return 0
        work, number = self._asking
        work.wait()
        self._asking = None
        return int(number)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        if self.local_rank:
            self._meet()
        yield
        if not self.local_rank:
            self._meet()

    def _meet(self) -> None:
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
            if not _is_of_a_connection(error):
                self._leave_note(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                raise
            raise self._lost(error) from error

    def _leave_note(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the store may be gone with the one who kept it
            self._notes.set(f"error/{self.rank}", text)

    def _lost(self, error: Exception) -> PeerLostError:
        """Who ended, and why as far as can be told, in one line."""
        for rank in (rank for rank in range(self.world_size) if rank != self.rank):
            if why := self._note_of(rank):
                return PeerLostError(f"rank {rank} of {self.world_size} ended: {why}", is_reported=rank == 0)
        for rank in (rank for rank in range(self.world_size) if rank != self.rank):
            if self._is_gone(rank):
                return PeerLostError(
                    f"rank {rank} of {self.world_size} is gone without a word (killed, most often for lack of memory); the same command goes on from the last checkpoint"
                )
        reason = " ".join(str(error).split())[:200]
        return PeerLostError(
            f"rank {self.rank} lost its connection to the other processes: {reason}; the same command goes on from the last checkpoint"
        )

    def _note_of(self, rank: int) -> str:
        try:
            key = f"error/{rank}"
            return self._notes.get(key).decode() if self._notes.check([key]) else ""
        except Exception:  # noqa: BLE001 - without the store there is nothing to read
            return ""

    def _is_gone(self, rank: int) -> bool:
        """Whether a process of this machine has ended; its parent may not have noticed yet."""
        try:
            host, pid = self._notes.get(f"place/{rank}").decode().split()
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

        with contextlib.suppress(Exception):  # of a lost connection there is nothing to take leave of
            self._answer()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def init_distributed(device: str, timeout: float) -> SingleProcess:
    """This process among those that torchrun started, or alone where it started none.

    Args:
        device: the setting; `auto` and `cuda` become the GPU of the local rank.
        timeout: seconds that the processes wait for each other at most.

    Raises:
        UsageError: there are more processes than GPUs, or they can not all have the device that was named.
    """
    if environment.world_size() == 1:
        return SingleProcess()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a torchrun that is killed tells its processes nothing
        die_with_parent()
    place = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        if device not in ("auto", "cuda"):
            raise UsageError(f"device={device!r} can not be every process' own; under torchrun leave --device out")
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(f"torchrun started more processes than this machine has GPUs; use --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
        place = torch.device("cuda", local)
    return DistributedContext(place, timeout)


def _is_of_a_connection(error: Exception) -> bool:
    """Whether an exception is what gloo, NCCL or the store say when another process is no more."""
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
