"""How a global batch is spread over processes and micro-batches, and what to do where it doesn't fit. Arithmetic only."""
from __future__ import annotations

from dataclasses import dataclass

from egokit.config.schema import Config


@dataclass(frozen=True)
class BatchPlan:
    """One optimizer step: batch_size samples, a contiguous share for each process, computed micro_batch samples at once."""
    batch_size: int
    processes: int
    micro_batch: int  # at most the largest share

    @property
    def micro_batches(self) -> int:
        """Of the largest share; another process may have one fewer."""
        return -(-largest_share(self.batch_size, self.processes) // self.micro_batch)

    def __str__(self) -> str:
        n, whole = self.micro_batches, self.processes * self.micro_batches * self.micro_batch == self.batch_size
        return (f"{self.batch_size} samples = {self.processes} process{'es' * (self.processes > 1)} x {n} micro-batch{'es' * (n > 1)} "
                f"of {'' if whole else 'at most '}{self.micro_batch}")


def largest_share(batch_size: int, processes: int) -> int:
    return -(-batch_size // processes)


def plan_batch(config: Config, processes: int = 0) -> BatchPlan:
    """The plan of a config's training; `processes` are those it says, if not given."""
    processes = processes or config.launch.nodes * config.launch.tasks_per_node
    share = largest_share(config.train.batch_size, processes)
    return BatchPlan(config.train.batch_size, processes, min(config.train.micro_batch or share, share))


def what_would_fit(config: Config, processes: int) -> str:
    """Advice after a step that ran out of memory."""
    now = plan_batch(config, processes)
    smaller = now.micro_batch // 2 or int(not config.train.micro_batch)  # of one sample, too, its passes can come one after the other
    ways = [f"train.micro_batch={smaller}"] if smaller else []
    ways += [] if config.model.checkpointing else ["model.checkpointing=true"]
    said = f"set {', or '.join(ways)}" if ways else "use more processes (launch.tasks_per_node), or a GPU with more memory"
    return (f"{now} (train.micro_batch={config.train.micro_batch}) don't fit: {said}; "
            "neither the batch nor its gradient changes, and the run goes on from its newest checkpoint")
