"""How much memory of a GPU a training step is predicted to need, and which setting would fit.

Before any clip there are weights, gradients, AdamW's two moments and the half-precision copies of weights. What is kept
of a clip until its backward pass grows with tokens x width, for each block that the clip goes through. The bytes below
were counted, not measured (benchmarks/memory_constants.py prints them): a card also needs what its allocator leaves
unused between tensors, and half a GiB for CUDA itself.

Shapes: S tokens of a clip, D width.
"""
import dataclasses
import functools

import torch

from egokit.config.schema import Config, ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.model.video_encoder import devices_of_kernels
from egokit.train.batch_plan import BatchPlan, plan_batch

GIB = 2**30
MODES = ("none", "cheap", "full")  # of model.checkpointing, from the quickest step to the one that needs least memory
MORE = "use more processes (launch.tasks_per_node), or a GPU with more memory"
FILLED = 0.92  # the share of a card that a step may be predicted to need, if it is to fit


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes for each clip, token and unit of width, in half precision.

    The last block of a pass gives CLS alone, or is not needed at all. So what comes beside the blocks may be negative.
    """
    block: float  # kept in a block of the video encoder that reads no text
    fused: float  # kept in a block that does, with its layer of the text encoder
    rest: float   # beside the blocks of pre-training's four passes, and while the backward pass goes through one
    dual: float   # the same of the dual encoder's pass alone


SHARED = 16  # the same, kept of all clips in micro-batches: states before fusion, those of drawn pairs, both gradients

# by the kernels of attention, whether model.half_residual acts, and model.checkpointing
COUNTED = {
    ("sdpa", False): {"none": Activations(block=68.3, fused=86.1, rest=-151.1, dual=-48.4),
                      "cheap": Activations(block=34.8, fused=44.3, rest=-36.6, dual=-4.4),
                      "full": Activations(block=4.6, fused=2.5, rest=108.8, dual=61.0)},
    ("sdpa", True): {"none": Activations(block=62.3, fused=76.1, rest=-137.9, dual=-54.1),
                     "cheap": Activations(block=32.8, fused=42.3, rest=-48.1, dual=-14.9),
                     "full": Activations(block=2.6, fused=1.5, rest=96.8, dual=55.0)},
    ("triton", False): {"none": Activations(block=51.3, fused=69.1, rest=-118.1, dual=-40.4),
                        "cheap": Activations(block=34.8, fused=44.4, rest=-53.9, dual=-29.8),
                        "full": Activations(block=4.6, fused=2.5, rest=91.8, dual=44.0)},
    ("triton", True): {"none": Activations(block=45.3, fused=59.1, rest=-104.9, dual=-46.0),
                       "cheap": Activations(block=33.3, fused=42.8, rest=-73.7, dual=-45.5),
                       "full": Activations(block=2.6, fused=1.5, rest=79.8, dual=38.0)}}
FLOAT32 = {"none": 1.8, "cheap": 1.9, "full": 1.55}  # what is kept in fp32, as a multiple of half precision's


@functools.lru_cache(maxsize=8)
def network_of(model: ModelConfig, trains: str) -> EgoVLP:
    """Return a network of a shape that takes no memory, with what is trained marked."""
    with torch.device("meta"):
        network = EgoVLP(dataclasses.replace(model, vocab_size=model.vocab_size or ModelConfig.vocab_size))
    frozen = network.unused_parameters(trains)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return network


def parameter_bytes(network: EgoVLP) -> tuple[int, int]:
    """Return the bytes of a network's float32 weights: of all, and of those that are trained."""
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def predicted_gib(config: Config, task, processes: int, network: EgoVLP | None = None) -> float:
    """Return the GiB of GPU memory that a process's training step is predicted to need.

    Args:
        network: the network that is trained, whose shape a checkpoint may have given; None takes the config's.
        task: the task or its class: what it trains, and how many clips a sample has.
        processes: over which the batch is spread.
    """
    plan = plan_batch(config, processes)
    half = config.train.precision in ("fp16", "bf16")
    model = config.model if network is None else network.config.computed_as(config.model)
    all_weights, trained = parameter_bytes(network or network_of(model, task.trains))
    kernels = "triton" if half and devices_of_kernels(model) else "sdpa"
    mode = "none" if config.train.compile and model.checkpointing == "cheap" else model.checkpointing
    kept = COUNTED[kernels, model.half_residual and half][mode]
    value = (1 + config.data.frames * (model.image_size // model.patch_size) ** 2) * model.width
    value *= 1 if half else FLOAT32[mode]
    clips, share = (samples * task.clips_per_sample for samples in (plan.micro_batch, plan.largest_share))
    activations = clips * (model.depth * kept.block + kept.dual)
    if task.trains == "fused_video":  # a single pass
        activations += clips * model.num_fused_layers * (kept.fused - kept.block)
    elif task.trains == "all" and config.train.micro_batch:  # one pass at a time
        activations = max(activations, clips * (model.num_fused_layers * kept.fused + kept.dual) + share * SHARED)
    elif task.trains == "all":
        activations = clips * ((2 * model.depth - model.num_fused_layers) * kept.block
                               + 2 * model.num_fused_layers * kept.fused + kept.rest)
    kept_bytes = trained // 2 * half + value * activations
    # in one piece, gradients arrive while activations go, and the half-precision copies of weights with them
    gradients = trained + kept_bytes if config.train.micro_batch else max(trained, kept_bytes)
    return (all_weights + 2 * trained + gradients) / GIB


def card_gib(device: torch.device) -> float:
    """Return a GPU's memory in GiB; 0 if the device is a CPU."""
    return torch.cuda.mem_get_info(device)[1] / GIB if device.type == "cuda" else 0.0


def told(config: Config, task, plan: BatchPlan, network: EgoVLP) -> dict[str, float]:
    """Print what a training on a GPU is predicted to need, and return it for the log; nothing on a CPU."""
    if network.device.type != "cuda" or not isinstance(network, EgoVLP):  # nothing was counted of other networks
        return {}
    needed = predicted_gib(config, task, plan.processes, network)
    print(f"memory: about {needed:.0f} of the GPU's {card_gib(network.device):.0f} GiB are predicted to be needed",
          flush=True)
    return {"predicted_gib": round(needed, 1)}


def copied_bytes(network: torch.nn.Module, averages: bool) -> int:
    """Return the bytes of rank 0's host that hold copies of a step's checkpoint and of best.pt, for their writer.

    Args:
        averages: the checkpoints have a running mean of the weights.
    """
    state = sum(tensor.nbytes for tensor in network.state_dict().values())
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    return 2 * state + (2 + averages) * trained  # with AdamW's two moments


def told_copies(network: torch.nn.Module, averages: bool) -> dict[str, float]:
    """Print what copies of checkpoints need of rank 0's host, if it is much, and return it for the log."""
    gib = copied_bytes(network, averages) / GIB
    if gib >= 1:
        print(f"memory: rank 0 keeps {gib:.1f} GiB of its host for copies of checkpoints, beside what it computes "
              "with: launch.mem_gb_per_task must leave room for them", flush=True)
    return {"copies_gib": round(gib, 2)}


def smaller_settings(config: Config, task, processes: int) -> list[dict[str, dict]]:
    """Return settings that need less memory, those first that cost less time.

    Recomputation costs less than micro-batches, which compute one more forward pass, by many more kernels.
    """
    modes = MODES[MODES.index(config.model.checkpointing) + 1:]
    if config.train.compile:  # the compiler chooses by itself what to compute again: cheap is as none
        modes = tuple(mode for mode in modes if mode != "cheap")
    size = plan_batch(config, processes).micro_batch
    # of the whole share, too, because stages are then computed one after the other
    sizes = [size] if task.trains == "all" and not config.train.micro_batch else []
    while size := size // 2:
        sizes.append(size)
    micro_batches = [{"train": {"micro_batch": size}} for size in sizes]
    return ([{"model": {"checkpointing": mode}} for mode in modes] + micro_batches
            + [{"model": {"checkpointing": "full"}} | micro for micro in micro_batches if modes])


def what_would_fit(config: Config, processes: int, task, network: EgoVLP) -> str:
    """Return advice, one sentence, after a step that ran out of memory.

    Args:
        task, network: see `predicted_gib`; the network says which card it is on.
    """
    plan = plan_batch(config, processes)
    gib = card_gib(network.device) if isinstance(network, EgoVLP) else 0
    if gib:
        advice = _predicted_to_fit(config, processes, task, network, gib)
    else:
        # micro-batches help a share of one sample, too: its passes then run one after the other
        smaller = plan.micro_batch // 2 or int(not config.train.micro_batch)
        settings = [f"train.micro_batch={smaller}"] if smaller else []
        settings += ["model.checkpointing=full"] if config.model.checkpointing != "full" else []
        advice = f"set {', or '.join(settings)}" if settings else MORE
    return (f"{plan} (train.micro_batch={config.train.micro_batch}, model.checkpointing={config.model.checkpointing}) "
            f"don't fit: {advice}; neither the batch nor its gradient changes, and the run goes on from its newest "
            "checkpoint")


def _predicted_to_fit(config: Config, processes: int, task, network: EgoVLP, gib: float) -> str:
    """Name the first setting that is predicted to fit; the smallest, if none is."""
    now = predicted_gib(config, task, processes, network)
    needs = []
    for settings in smaller_settings(config, task, processes):
        changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)
                                                 for section, values in settings.items()})
        text = ", ".join(f"{section}.{key}={value}" for section, values in settings.items()
                         for key, value in values.items())
        needs.append((predicted_gib(changed, task, processes, network), text))
    needs = [(need, text) for need, text in needs if need <= now]
    for need, text in needs:
        if need <= FILLED * gib:
            return f"set {text}, which is predicted to need {need:.0f} of the GPU's {gib:.0f} GiB"
    if not needs:
        return MORE
    need, text = min(needs)
    return (f"nothing is predicted to fit into the GPU's {gib:.0f} GiB: {text} needs least, {need:.0f} GiB; if that "
            f"doesn't fit, {MORE}")
