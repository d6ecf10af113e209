"""The configuration schema: every key with its default and meaning, and what it may be.

The dataclasses are frozen. resolve.py reads the files that fill them.

To add a key: (1) give it a field with its default and meaning; (2) put its name into CHOICES, or, if it is a number,
into MINIMUM or POSITIVE, and into MAXIMUM if it has a largest value; (3) put it into LOCAL_ONLY if results don't depend
on it; (4) read it where it acts, as config.<section>.<key>.
"""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network; the defaults are those of the released pre-training model."""
    image_size: int = 224          # side of a frame, pixels
    patch_size: int = 16           # side of a patch, pixels
    frames: int = 4                # capacity of the temporal embedding; shorter clips use its first entries
    width: int = 768               # dimension of the tokens, in both encoders
    heads: int = 12                # attention heads
    depth: int = 12                # blocks of the video encoder, and layers of the text encoder
    num_fused_layers: int = 6      # number of last blocks and layers that have cross-attention
    mlp_ratio: float = 4.0         # hidden dimension of the MLPs, as a multiple of width
    vocab_size: int = 50265        # number of token embeddings; 0: as many as the tokenizer has
    max_positions: int = 514       # number of position embeddings of the text encoder (RoBERTa uses all but two)
    dropout: float = 0.1           # in the text encoder only, as in RoBERTa
    projection: str = "mlp4096"    # head into the shared space: mlp<dim> or linear<dim>
    time_init: str = "released"    # start of time attention: released (never learns) or zero_output (learns)
    checkpointing: bool = False    # recompute blocks in the backward pass where it saves most memory; slower


@dataclass(frozen=True)
class DataConfig:
    """Reading of clips and texts."""
    frames: int = 4                                # frames of a clip in training
    eval_frames: int = 16                          # frames of a clip in evaluation
    val_frames: int = 4                            # frames of a clip in EgoMCQ between the epochs of pre-training
    crop_scale: tuple[float, float] = (0.5, 1.0)   # random resized crop in training: range of its area
    flip: bool = True                              # random horizontal flip in training
    eval_resize: int = 256                         # short side before the centre crop in evaluation, pixels
    max_tokens: int = 15                           # text length in training; longer texts are cut
    eval_max_tokens: int = 30                      # text length in evaluation; longer texts are cut
    reader: str = "pyav"                           # video reader: pyav or decord
    workers: int = 4                               # loader processes of each rank
    max_bad_fraction: float = 0.0                  # share of an epoch's samples that may be unreadable;
                                                   # they are logged and others are read instead
    read_timeout: float = 120.0                    # seconds that a loader process may take to open and read one file
    limit: int = 0                                 # use only the first so many samples; 0: all
    relevancy_threshold: float = 0.1               # EK-100: a clip is trained with the texts of a higher relevancy


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and the learning-rate schedule."""
    lr: float = 3e-5                               # peak learning rate
    head_lr_scale: float = 4.0                     # lr factor of projections, heads and cross-modal parameters
    betas: tuple[float, float] = (0.9, 0.98)       # AdamW's decay rates of the two moments
    eps: float = 1e-8                              # AdamW's epsilon
    weight_decay: float = 0.01                     # applies to weights; biases and norms have none
    warmup_epochs: float = 2.0                     # epochs of linear warm-up
    schedule: str = "linear"                       # decay after the warm-up: linear or cosine
    final_lr: float = 1e-7                         # learning rate at the end of the decay
    clip_grad_norm: float = 0.0                    # largest gradient norm; 0: no clipping, as in the recipes


@dataclass(frozen=True)
class TrainConfig:
    """The training loop and its losses."""
    epochs: int = 20                               # passes over the training set
    batch_size: int = 256                          # global batch size, over all processes together
    micro_batch: int = 0                           # samples that a process computes at once; 0: its share;
                                                   # the gradient is that of the whole batch in any case
    precision: str = "fp16"                        # autocast: fp16, bf16 or fp32
    deterministic: bool = False                    # bitwise reproducible on GPUs (slower); on CPUs it always is
    compile: bool = False                          # torch.compile of the encoders' blocks; needs a C++ compiler
    checkpoint_steps: int = 500                    # steps between two checkpoints
    log_steps: int = 10                            # steps between two lines of the log
    evaluate_epochs: int = 1                       # epochs between two validations
    nonfinite_limit: int = 20                      # skipped (NaN or infinite) steps in a row that stop the run
    temperature: float = 0.05                      # of EgoNCE and InfoNCE
    negative_temperature: float = 0.05             # of the draw of hard negatives; the paper uses EgoNCE's
    retrieval_loss: str = "max_margin"             # EK-100: max_margin or symmetric_multi_similarity
    margin: float = 0.2                            # max_margin: times a pair's relevancy
    similarity_margin: float = 0.6                 # symmetric_multi_similarity: times a difference of relevancies
    similarity_slack: float = 0.1                  # symmetric_multi_similarity: slack for pairs of equal relevancy
    itm_weight: float = 2.0                        # weight of the image-text matching loss
    mask_probability: float = 0.15                 # masked language modelling: share of tokens to predict


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation and feature extraction."""
    batch_size: int = 32                           # samples that a process scores at once
    precision: str = "fp32"                        # fp32, as published; faster on GPUs: bf16, fp16, and tf32,
                                                   # which rounds products
    features_per_second: float = 1.87              # EgoMQ: features of one second of video
    feature_frames: int = 16                       # EgoMQ: frames of one feature
    dual_softmax: float = 0.0                      # EK-100: temperature of additional scores with dual softmax; 0: none
    feature_clips: str = "moments_*.json"          # EgoMQ: files that list the clips, * stands for the split (NLQ's:
                                                   # nlq_*.json), or one list of whole videos
    feature_videos: str = "Ego4D_256"              # EgoMQ: folder of the videos, resized or original
    feature_format: str = "pt"                     # EgoMQ: pt or npy


@dataclass(frozen=True)
class SearchConfig:
    """Text search over a user's own videos, cut into overlapping clips of model.frames frames."""
    videos: str = ""                               # folder of videos, searched recursively: a path, or a name
                                                   # under site.root
    window: float = 4.0                            # length of a clip, seconds
    stride: float = 2.0                            # seconds from the start of one clip to the start of the next


@dataclass(frozen=True)
class SiteConfig:
    """What differs between machines: the places of files."""
    name: str = ""                                 # the site's name; resolve sets it
    root: str = ""                                 # the data root; docs/data.md shows its layout
    tokenizer: str = "roberta-base"                # a name, or a folder
    vit: str = ""                                  # ViT-B/16 to start from: a timm name, a file, or random
    roberta: str = ""                              # RoBERTa to start from: a name, a folder, or random
    weights: str = ""                              # folder of the released checkpoints
    short_side: int = 256                          # of the prepared videos, pixels
    chunk_seconds: float = 600.0                   # length of a prepared chunk of video
    encoding: str = "random_access"                # of the prepared videos: random_access (clips are read fast) or
                                                   # original (as in the paper's code)
    toy: bool = False                              # root holds the embedded data set, which egokit.toy makes


@dataclass(frozen=True)
class LaunchConfig:
    """How a job is run; local jobs ignore every key below gpus_per_task."""
    cluster: str = "local"                         # local or slurm
    nodes: int = 1                                 # number of nodes
    tasks_per_node: int = 1                        # processes on each node, one per GPU
    cpus_per_task: int = 0                         # CPU cores of each process; 0: 1 + data.workers
    timeout_minutes: int = 4320                    # time limit of a job; it is requeued then and resumes
    requeues: int = 100                            # most requeues after time limits, and as many after lost ranks
    gpus_per_task: int = 1                         # GPUs of each process: 1, or 0 to hide all GPUs and use the CPU
    mem_gb_per_task: float = 0.0                   # memory of each process, GB; 0: the cluster's default, or
                                                   # all of the node's memory if exclusive
    partition: str = ""                            # sbatch --partition; "": the cluster's default
    account: str = ""                              # sbatch --account; "": the cluster's default
    qos: str = ""                                  # sbatch --qos; "": the cluster's default
    constraint: str = ""                           # sbatch --constraint; "": the cluster's default
    exclusive: bool = False                        # reserve whole nodes
    setup: tuple[str, ...] = ()                    # shell lines before the processes start: module load …, export …
    slurm: dict = field(default_factory=dict)      # further options of submitit's SlurmExecutor


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""
    task: str = ""                                 # one of CHOICES["task"], or a user's: folder/file.py:Class
    init: str = ""                                 # checkpoint: a file, run:<notebook>/<run>, or a name in site.weights
    seed: int = 0                                  # of every random draw
    site: SiteConfig = field(default_factory=SiteConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


RANDOM = "random"                                  # site.vit or site.roberta: start from random weights
TRAINED = ("egoclip", "ek100", "charades")         # tasks of egokit's own that have a loss

# Bounds of numbers: every numeric key without CHOICES is in exactly one of MINIMUM and POSITIVE; MAXIMUM adds an upper
# bound to some.
MINIMUM = {key: smallest for smallest, keys in {   # written as smallest value: keys
    0: "seed model.vocab_size model.dropout data.workers data.max_bad_fraction data.limit data.relevancy_threshold "
       "optim.head_lr_scale optim.betas optim.eps optim.weight_decay optim.warmup_epochs optim.final_lr "
       "optim.clip_grad_norm train.epochs train.micro_batch train.margin train.similarity_margin "
       "train.similarity_slack train.itm_weight train.mask_probability evaluate.dual_softmax launch.requeues "
       "launch.cpus_per_task launch.mem_gb_per_task",
    1: "model.image_size model.patch_size model.frames model.width model.heads model.depth model.num_fused_layers "
       "model.max_positions data.frames data.eval_frames data.val_frames data.eval_resize train.batch_size "
       "train.checkpoint_steps train.log_steps train.evaluate_epochs train.nonfinite_limit evaluate.batch_size "
       "evaluate.feature_frames launch.nodes launch.tasks_per_node launch.timeout_minutes",
    2: "site.short_side",
    3: "data.max_tokens data.eval_max_tokens",     # the start token, one word and the end token
}.items() for key in keys.split()}
POSITIVE = {  # keys whose value is above 0
    "model.mlp_ratio", "data.crop_scale", "data.read_timeout", "optim.lr", "train.temperature",
    "train.negative_temperature", "evaluate.features_per_second", "search.window", "search.stride",
    "site.chunk_seconds"}
MAXIMUM = dict.fromkeys((  # key: largest value
    "model.dropout", "data.crop_scale", "data.max_bad_fraction", "data.relevancy_threshold", "optim.betas",
    "train.mask_probability"), 1)
CHOICES = {  # key: the values that it may have
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
# Keys that may change within one run: they say where and how it is computed, not what.
LOCAL_ONLY = {"launch", "data.workers", "evaluate.batch_size", "train.micro_batch", "train.compile",
              "train.deterministic", "model.checkpointing"}
RENAMED = {  # earlier key, which older recipes, run folders and checkpoints have: key today
    "model.fused": "model.num_fused_layers", "model.vocabulary": "model.vocab_size",
    "model.positions": "model.max_positions",
    "data.tokens": "data.max_tokens", "data.evaluation_tokens": "data.eval_max_tokens",
    "data.evaluation_frames": "data.eval_frames", "data.validation_frames": "data.val_frames",
    "data.evaluation_resize": "data.eval_resize", "optim.heads_multiplier": "optim.head_lr_scale",
    "launch.processes": "launch.tasks_per_node", "launch.cpus": "launch.cpus_per_task",
    "launch.gpus": "launch.gpus_per_task", "launch.memory_gb": "launch.mem_gb_per_task",
}


def violated_bound(key: str, number) -> str:
    """Return the bound that `number` violates, for example "1 or more", or ""."""
    if key in MINIMUM and number < MINIMUM[key]:
        return f"{MINIMUM[key]} or more"
    if key in POSITIVE and number <= 0:
        return "more than 0"
    return f"{MAXIMUM[key]} or less" if key in MAXIMUM and number > MAXIMUM[key] else ""
