"""Several processes that train one model together, started by ``accelerate launch`` (or torchrun).

Every process draws the whole batch from the same counters and works on its own rows, so n processes see what one would
see, and end at the same weights but for the rounding of sums.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process's place among ``size``, and the device that it trains on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls, device: str | None = None) -> Team:
        """As accelerate finds it: alone on the GPU where there is one, unless a launcher says otherwise.

        device: such as ``cpu`` or ``cuda:1``, in the place of accelerate's choice. Raises ValueError where this machine
        cannot compute there, or where several processes, of which each has its own, are all sent to one card.
        """
        # Its functions take the processes' connections that exist when it is first imported as a default, and hold them
        # past their end; optimisers import it, and do so too late.
        import torch.distributed.nn.functional
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        # Apple's GPUs have no float64, which least squares and the schedule need. Told cpu, accelerate joins processes
        # there too; left alone on a machine without a GPU it would take each of them for the only one.
        bare = found is None or found.type == "mps" or parse_flag_from_env("ACCELERATE_USE_CPU")
        state = PartialState(cpu=device == "cpu" or (device is None and bare))
        place = state.device if device is None else usable(device)
        if state.num_processes > 1 and place.type != state.device.type:
            raise ValueError(f"device {device!r}: the {state.num_processes} processes were started for {state.device}")
        if state.num_processes > 1 and place.index is not None and place != state.device:
            raise ValueError(f"device {device!r} for {state.num_processes} processes: each has its own, name none")
        if state.num_processes > 1:
            atexit.register(leave)
        return cls(
            device=state.device if state.num_processes > 1 else place,
            rank=state.process_index,
            size=state.num_processes,
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def rows(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's rows of ``batch`` (B, ...), on its device.

        Raises ValueError where B is no multiple of the number of processes, since unequal shares would weigh samples
        unequally.
        """
        if len(batch) % self.size:
            raise ValueError(f"a batch of {len(batch)} over {self.size} processes: give a multiple of {self.size}")
        return batch.chunk(self.size)[self.rank].to(self.device)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self.size

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(count)
        return count.item() > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def leave() -> None:
    """Close the connections to the other processes, and end the threads that serve them.

    Left to the interpreter's end, one of these now and then aborts a finished process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def usable(device: str) -> torch.device:
    """The device of that name. Raises ValueError where this machine cannot compute in float64 there."""
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=found).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {device!r}: {reason}") from None
    return found
