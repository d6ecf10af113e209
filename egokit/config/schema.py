"""What can be configured: frozen dataclasses with their defaults. Files are read in resolve.py."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. The defaults are the released pre-training model."""
    image_size: int = 224
    patch_size: int = 16
    frames: int = 4              # capacity of the temporal embedding; fewer frames use the first ones
    width: int = 768
    heads: int = 12
    depth: int = 12              # blocks of the video encoder, and layers of the text encoder
    num_fused_layers: int = 6    # of them, the last ones that carry cross-attention
    mlp_ratio: float = 4.0
    vocab_size: int = 50265
    max_positions: int = 514
    dropout: float = 0.1         # text encoder only, as in RoBERTa
    projection: str = "mlp4096"  # mlp<dim> or linear<dim>
    time_init: str = "released"  # released: as the original (never learns); zero_output: learns
    checkpointing: bool = False  # recompute blocks in the backward pass where that spares most: less memory, more time


@dataclass(frozen=True)
class DataConfig:
    frames: int = 4                                # a clip, in training
    eval_frames: int = 16
    val_frames: int = 4                     # EgoMCQ between the epochs of pre-training
    crop_scale: tuple[float, float] = (0.5, 1.0)   # random resized crop, share of the area
    flip: bool = True                              # horizontal flip in training
    eval_resize: int = 256                   # short side and centre crop, before model.image_size
    max_tokens: int = 15                               # longest text in training
    eval_max_tokens: int = 30
    reader: str = "pyav"                           # pyav or decord
    workers: int = 4                               # loader processes for each rank
    max_bad_fraction: float = 0.0                  # of an epoch's samples that may be unreadable; logged, others read instead
    read_timeout: float = 120.0                    # seconds that opening and reading one file may take in a loader process
    limit: int = 0                                 # use only so many samples; 0 is all
    relevancy_threshold: float = 0.1               # EK-100: a clip's texts in training


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 3e-5
    head_lr_scale: float = 4.0                  # on projections, heads and cross-modal parameters
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01                     # none on biases and norms
    warmup_epochs: float = 2.0
    schedule: str = "linear"                       # linear or cosine
    final_lr: float = 1e-7
    clip_grad_norm: float = 0.0                    # 0: no clipping, as in the recipes


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 20
    batch_size: int = 256                          # global: over all processes together
    micro_batch: int = 0                           # samples a process computes at once (0: its share); the gradient is the batch's
    precision: str = "fp16"                        # fp16, bf16 or fp32
    deterministic: bool = False                    # the same bits each time on GPUs, too, which is slower; on CPUs they are anyway
    compile: bool = False                          # torch.compile of the encoders' blocks; needs a C++ compiler
    checkpoint_steps: int = 500
    log_steps: int = 10
    evaluate_epochs: int = 1
    nonfinite_limit: int = 20                      # so many skipped steps in a row stop the run
    temperature: float = 0.05                      # of EgoNCE and InfoNCE
    negative_temperature: float = 0.05             # of the draw of hard negatives; the same as EgoNCE's in the paper
    retrieval_loss: str = "max_margin"             # of EK-100; or symmetric_multi_similarity
    margin: float = 0.2                            # of max_margin, times a pair's relevancy
    similarity_margin: float = 0.6                 # of symmetric_multi_similarity, times the difference of two relevancies
    similarity_slack: float = 0.1                  # of symmetric_multi_similarity, for pairs of equal relevancy
    itm_weight: float = 2.0
    mask_probability: float = 0.15                 # of masked language modelling


@dataclass(frozen=True)
class EvaluateConfig:
    batch_size: int = 32
    precision: str = "fp32"                        # fp32, as published; on GPUs tf32 (rounded products), bf16 or fp16 are faster
    features_per_second: float = 1.87              # EgoMQ
    feature_frames: int = 16                       # EgoMQ: samples in one feature
    dual_softmax: float = 0.0                      # EK-100: temperature of a second set of numbers, scored so; 0: none
    feature_clips: str = "moments_*.json"          # EgoMQ: what lists the clips, * each split: nlq_*.json, or one list of whole videos
    feature_videos: str = "Ego4D_256"              # EgoMQ: folder of the videos, resized or not
    feature_format: str = "pt"                     # EgoMQ: pt or npy


@dataclass(frozen=True)
class SearchConfig:
    """One's own videos, cut into overlapping clips; a clip has model.frames frames."""
    videos: str = ""                               # folder of the videos, sub-folders included: a path, or a name under site.root
    window: float = 4.0                            # seconds of a clip
    stride: float = 2.0                            # seconds from one clip's start to the next one's


@dataclass(frozen=True)
class SiteConfig:
    """What differs between machines: where things lie."""
    name: str = ""
    root: str = ""                                 # the data root: docs/data.md
    tokenizer: str = "roberta-base"                # a name or a folder
    vit: str = ""                                  # ViT-B/16 to start from: a timm name, a file, or random
    roberta: str = ""                              # RoBERTa to start from: a name, a folder, or random
    weights: str = ""                              # folder of released checkpoints
    short_side: int = 256                          # of the prepared videos, pixels
    chunk_seconds: float = 600.0                   # length of a prepared piece
    encoding: str = "random_access"                # of the prepared videos: fast clips; original: as the paper's code
    toy: bool = False                              # the embedded data set: egokit.toy makes root


@dataclass(frozen=True)
class LaunchConfig:
    """How a job is run. Local processes ignore everything below gpus."""
    cluster: str = "local"                         # local or slurm
    nodes: int = 1
    tasks_per_node: int = 1                             # for each node: one for each of its GPUs
    cpus_per_task: int = 0                                  # for each process; 0: one for itself and one for each of data.workers
    timeout_minutes: int = 4320                    # of a job; when it is over, the job is queued again and goes on
    requeues: int = 100                            # at time limits and preemptions, and after lost ranks
    gpus_per_task: int = 1                                  # for each process: 1, or 0 to compute on CPUs; GPUs are hidden then
    mem_gb_per_task: float = 0.0                         # for each process; 0: the cluster's default, or a whole node's if exclusive
    partition: str = ""                            # this and the next three: as sbatch's option of that name; "": the cluster's default
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclusive: bool = False                        # whole nodes
    setup: tuple[str, ...] = ()                    # shell lines before the processes start: module load …, export …
    slurm: dict = field(default_factory=dict)      # further options of submitit's SlurmExecutor


@dataclass(frozen=True)
class Config:
    task: str = ""                                 # egoclip, egomcq, ek100, charades, mq, search, or yours: folder/file.py:Class
    init: str = ""                                 # checkpoint: a file, run:<notebook>/<run>, or a name in site.weights
    seed: int = 0
    site: SiteConfig = field(default_factory=SiteConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


RANDOM = "random"                                  # as site.vit or site.roberta: weights of its own
TRAINED = ("egoclip", "ek100", "charades")         # tasks with a loss; the others are evaluated only
MINIMUM = {name: least for least, names in {         # what a number may be: from here on …
    0: "seed model.vocab_size model.dropout data.workers data.max_bad_fraction data.limit data.relevancy_threshold optim.head_lr_scale "
       "optim.betas optim.eps optim.weight_decay optim.warmup_epochs optim.final_lr optim.clip_grad_norm train.epochs train.micro_batch "
       "train.margin train.similarity_margin train.similarity_slack train.itm_weight train.mask_probability evaluate.dual_softmax "
       "launch.requeues launch.cpus_per_task launch.mem_gb_per_task",
    1: "model.image_size model.patch_size model.frames model.width model.heads model.depth model.num_fused_layers model.max_positions data.frames "
       "data.eval_frames data.val_frames data.eval_resize train.batch_size train.checkpoint_steps train.log_steps "
       "train.evaluate_epochs train.nonfinite_limit evaluate.batch_size evaluate.feature_frames launch.nodes launch.tasks_per_node "
       "launch.timeout_minutes",
    2: "site.short_side",
    3: "data.max_tokens data.eval_max_tokens",       # a word between a text's start and end
}.items() for name in names.split()}
POSITIVE = {"model.mlp_ratio", "data.crop_scale", "data.read_timeout", "optim.lr", "train.temperature", "train.negative_temperature",
              "evaluate.features_per_second", "search.window", "search.stride", "site.chunk_seconds"}  # … or above this …
MAXIMUM = dict.fromkeys(("model.dropout", "data.crop_scale", "data.max_bad_fraction", "data.relevancy_threshold", "optim.betas",
                      "train.mask_probability"), 1)  # … up to this
CHOICES = {
    "task": ("egoclip", "egomcq", "ek100", "charades", "mq", "search"),
    "model.time_init": ("released", "zero_output"),
    "site.encoding": ("random_access", "original"),
    "data.reader": ("pyav", "decord"),
    "optim.schedule": ("linear", "cosine"),
    "train.retrieval_loss": ("max_margin", "symmetric_multi_similarity"),
    "train.precision": ("fp16", "bf16", "fp32"),
    "evaluate.precision": ("fp32", "tf32", "bf16", "fp16"),
    "evaluate.feature_format": ("pt", "npy"),
    "launch.cluster": ("local", "slurm"),
    "launch.gpus_per_task": (0, 1),
}
# may change without making another run: where and how it is computed, not what
LOCAL_ONLY = {"launch", "data.workers", "evaluate.batch_size", "train.micro_batch", "train.compile", "train.deterministic",
              "model.checkpointing"}


RENAMED = {  # earlier names, which older recipes, run folders and checkpoints have
    "model.fused": "model.num_fused_layers", "model.vocabulary": "model.vocab_size", "model.positions": "model.max_positions",
    "data.tokens": "data.max_tokens", "data.evaluation_tokens": "data.eval_max_tokens",
    "data.evaluation_frames": "data.eval_frames", "data.validation_frames": "data.val_frames",
    "data.evaluation_resize": "data.eval_resize", "optim.heads_multiplier": "optim.head_lr_scale",
    "launch.processes": "launch.tasks_per_node", "launch.cpus": "launch.cpus_per_task",
    "launch.gpus": "launch.gpus_per_task", "launch.memory_gb": "launch.mem_gb_per_task",
}


def violated_bound(key: str, number) -> str:
    """What the number of a key should have been; empty where it can be this one."""
    if key in MINIMUM and number < MINIMUM[key]:
        return f"{MINIMUM[key]} or more"
    if key in POSITIVE and number <= 0:
        return "more than 0"
    return f"{MAXIMUM[key]} or less" if key in MAXIMUM and number > MAXIMUM[key] else ""
