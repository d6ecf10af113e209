"""How a global batch is spread over processes and micro-batches, and its learning rate. Arithmetic only."""
from dataclasses import dataclass

from egokit.config.build import ConfigError
from egokit.config.schema import Config


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step computes its global batch.

    Each process has a contiguous share of the batch_size samples and computes micro_batch of them at once.
    """
    batch_size: int
    processes: int
    micro_batch: int  # at most the largest share
    peak_lr: float    # the learning rate after the warm-up, as `peak_rate` gives it
    lr_rule: str = ""  # how it was scaled, in words; "" if it is optim.lr

    @property
    def largest_share(self) -> int:
        """Number of samples of the process that has most of them."""
        return -(-self.batch_size // self.processes)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of the largest share; another process may have one fewer."""
        return -(-self.largest_share // self.micro_batch)

    def __str__(self) -> str:
        n, even = self.micro_batches, self.processes * self.micro_batches * self.micro_batch == self.batch_size
        return (f"{self.batch_size} samples = {self.processes} process{'es' * (self.processes > 1)} x "
                f"{n} micro-batch{'es' * (n > 1)} of {'' if even else 'at most '}{self.micro_batch}"
                + (f"; learning rate {self.peak_lr:.3g} = {self.lr_rule}" if self.lr_rule else ""))


def peak_rate(config: Config) -> float:
    """Return the learning rate after the warm-up: optim.lr, scaled to the batch as optim.scale_lr says.

    Linear scaling multiplies it by train.batch_size / optim.lr_batch_size, square-root scaling by the root of that.
    The other numbers of AdamW, and optim.final_lr, stay.

    Source: linear: Goyal et al. (arXiv 1706.02677); square root: Krizhevsky (arXiv 1404.5997), for Adam Malladi et
    al. (arXiv 2205.10287), whose rule also changes betas and eps.
    """
    optim = config.optim
    if optim.scale_lr == "none":  # lr_batch_size may then be 0
        return optim.lr
    ratio = config.train.batch_size / optim.lr_batch_size
    return optim.lr * (ratio if optim.scale_lr == "linear" else ratio ** 0.5)


def plan_batch(config: Config, processes: int = 0) -> BatchPlan:
    """Return how a config's training spreads its batch.

    Args:
        processes: number of processes; 0 takes launch.nodes x launch.tasks_per_node.
    """
    processes = processes or config.launch.nodes * config.launch.tasks_per_node
    share = -(-config.train.batch_size // processes)
    optim = config.optim
    rule = (f"optim.lr {optim.lr:g} of batches of {optim.lr_batch_size}, scaled by optim.scale_lr={optim.scale_lr}"
            if optim.scale_lr != "none" else "")
    return BatchPlan(config.train.batch_size, processes, min(config.train.micro_batch or share, share),
                     peak_rate(config), rule)


def check_batch(config: Config, action: str) -> None:
    """Raise ConfigError if a training's batch has too few samples to give each process one."""
    launch, batch_size = config.launch, config.train.batch_size
    processes = launch.nodes * launch.tasks_per_node
    if action == "train" and batch_size < processes:
        raise ConfigError(f"train.batch_size={batch_size}, but launch.nodes={launch.nodes} x launch.tasks_per_node="
                          f"{launch.tasks_per_node} are {processes} processes, each of which needs a sample: set "
                          f"train.batch_size to {processes} or more, or use fewer processes")
