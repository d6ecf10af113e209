"""The configuration schema: every key once, with its type, bounds or choices, default and meaning.

Sections are frozen pydantic dataclasses. resolve.py reads the files that fill them. Keys that one task alone uses
stand in its class, as `Params` (tasks/).

To add a key: (1) give it a line in its section, or in the `Params` of the task that uses it; (2) mark it Scored if an
evaluation's numbers depend on it, Local if no numbers do, Input if it names files; (3) read it where it acts, as
config.<section>.<key>.
"""
import re
import unicodedata
from dataclasses import field, replace
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Local = Annotated[T, "local"]    # says where or how a run is computed, not what: it may change within one run
Scored = Annotated[T, "scored"]  # an evaluation's numbers depend on it
Input = Annotated[T, "input"]    # names a run, file or folder that is read, a place that no recipe can publish


def _as_number(value):
    """Return a number that YAML took for a text, such as 3e-5, as a float; refuse true and false."""
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def number(kind: type, **bounds):
    """Return the type of a finite number with pydantic's bounds: ge, gt, le, lt."""
    return Annotated[kind, BeforeValidator(_as_number), Field(**bounds)]


def is_one_line(value) -> bool:
    """Return whether no text in a value, keys of dicts included, has line ends or other control characters."""
    if isinstance(value, dict):
        return all(map(is_one_line, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(is_one_line, value))
    return not isinstance(value, str) or not any(
        unicodedata.category(character) in ("Cc", "Zl", "Zp") and character != "\t" for character in value)


def _one_line(value):
    """Return a value of a site if it can't become further lines of a job's shell script."""
    if not is_one_line(value):
        raise ValueError("one line without control characters (give each line of a list an item of its own)")
    return value


def _split_lines(value):
    """Return a list whose texts of several lines, such as YAML's blocks, are an item for each line."""
    if not isinstance(value, (list, tuple)):
        return value
    return [line for item in value
            for line in (re.split("\r?\n", item.removesuffix("\n")) if isinstance(item, str) else [item])]


OneLine, Options = Annotated[str, AfterValidator(_one_line)], Annotated[dict, AfterValidator(_one_line)]
ShellLines = Annotated[tuple[OneLine, ...], BeforeValidator(_split_lines)]
Count, Size = number(int, ge=1), number(int, ge=0)
Positive, NotNegative, Share = number(float, gt=0), number(float, ge=0), number(float, ge=0, le=1)
# of a network, far above any: a checkpoint's own record of its shape, too, is bounded before anything is built
Dimension, Depth = number(int, ge=1, le=1_000_000), number(int, ge=1, le=256)
Vocabulary, Ratio = number(int, ge=0, le=100_000_000), number(float, gt=0, le=1000)
# earlier versions knew true and false
Recomputed = Annotated[Literal["none", "cheap", "full"],
                       BeforeValidator(lambda value: {False: "none", True: "full"}.get(value, value)
                                       if isinstance(value, bool) else value)]
TextLength = number(int, ge=3)   # the start token, one word and the end token


class Section:
    """Base of the config's sections: its subclasses become frozen, strict pydantic dataclasses."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        strict = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
        dataclass(frozen=True, kw_only=True, config=strict)(cls)


class TaskConfig(Section):
    """The section `task`; a task's `Params` derives from it and adds the keys of that task."""
    name: str = ""                                 # a name in TASKS (registry.py), or a user's: folder/file.py:Class


class ModelConfig(Section):
    """Shape of the network; the defaults are those of the released pre-training model."""
    image_size: Scored[Dimension] = 224  # side of a frame, pixels
    patch_size: Dimension = 16     # side of a patch, pixels
    frames: Dimension = 4          # capacity of the temporal embedding; shorter clips use its first entries
    width: Dimension = 768         # dimension of the tokens, in both encoders
    heads: Dimension = 12          # attention heads
    depth: Depth = 12              # blocks of the video encoder, and layers of the text encoder
    num_fused_layers: Depth = 6    # number of last blocks and layers that have cross-attention
    mlp_ratio: Ratio = 4.0         # hidden dimension of the MLPs, as a multiple of width
    vocab_size: Vocabulary = 50265 # number of token embeddings; 0: as many as the tokenizer has
    max_positions: Dimension = 514 # number of position embeddings of the text encoder (RoBERTa uses all but two)
    dropout: Share = 0.1           # in the text encoder only, as in RoBERTa
    projection: str = "mlp4096"    # head into the shared space: mlp<dim> or linear<dim>
    time_init: Literal["released", "zero_output"] = "released"  # start of time attention: released (never learns) or
                                                                # zero_output (learns)
    checkpointing: Local[Recomputed] = "none"  # what the backward pass computes again to save memory: none, cheap (all
                                   # of a block but products and attention) or full (whole blocks; slower)
    attention: Local[Literal["auto", "sdpa", "triton"]] = "auto"  # divided attention on GPUs: PyTorch's kernels
                                   # (sdpa), or in half precision egokit's own without copies (triton); auto takes
                                   # these where they can be had. CPUs have a path of their own
    half_residual: StrictBool = False  # training under fp16 or bf16: tokens between a video block's layers in half
                                   # precision, too; fewer bytes, coarser sums

    def computed_as(self, settings: "ModelConfig") -> "ModelConfig":
        """Return this shape with the settings of another that say how a model computes, not what."""
        return replace(self, **{key: getattr(settings, key) for key in ("checkpointing", "attention", "half_residual")})


class DataConfig(Section):
    """Reading of clips and texts."""
    frames: Count = 4                                  # frames of a clip in training
    eval_frames: Scored[Count] = 16                    # frames of a clip in evaluation
    crop_scale: tuple[number(float, gt=0, le=1), number(float, gt=0, le=1)] = (0.5, 1.0)  # random resized crop in
                                                       # training: range of its area
    flip: StrictBool = True                            # random horizontal flip in training
    eval_resize: Scored[Count] = 256                   # short side before the centre crop in evaluation, pixels
    max_tokens: TextLength = 15                        # text length in training; longer texts are cut
    eval_max_tokens: Scored[TextLength] = 30           # text length in evaluation; longer texts are cut
    reader: Scored[Literal["pyav", "decord"]] = "pyav"  # video reader
    workers: Local[Size] = 4                           # loader processes of each rank
    max_bad_fraction: Share = 0.0                      # share of an epoch's samples that may be unreadable;
                                                       # they are logged and others are read instead. In EgoMQ:
                                                       # share of a clip's frames that may be damaged
    read_timeout: Local[Positive] = 120.0              # seconds that a loader process may take to read one file
    limit: Size = 0                                    # use only the first so many samples; 0: all


class OptimConfig(Section):
    """AdamW and the learning-rate schedule."""
    lr: Positive = 3e-5                            # peak learning rate; with scale_lr, of batches of lr_batch_size
    scale_lr: Literal["none", "linear", "square_root"] = "none"  # what lr is multiplied by: nothing, or
                                                   # train.batch_size / lr_batch_size, or its root (docs/recipes.md)
    lr_batch_size: Size = 0                        # the batch that lr is for; scale_lr needs it
    head_lr_scale: NotNegative = 4.0               # lr factor of projections, heads, cross-modal parameters, and of a
                                                   # task's own modules
    betas: tuple[Share, Share] = (0.9, 0.98)       # AdamW's decay rates of the two moments
    eps: NotNegative = 1e-8                        # AdamW's epsilon
    weight_decay: NotNegative = 0.01               # applies to weights; biases and norms have none
    warmup_epochs: NotNegative = 2.0               # epochs of linear warm-up
    schedule: Literal["linear", "cosine"] = "linear"  # decay after the warm-up
    final_lr: NotNegative = 1e-7                   # learning rate at the end of the decay
    clip_grad_norm: NotNegative = 0.0              # largest gradient norm; 0: no clipping, as in the recipes


class TrainConfig(Section):
    """The training loop."""
    epochs: Size = 20                              # passes over the training set
    batch_size: Count = 256                        # global batch size, over all processes together
    micro_batch: Local[Size] = 0                   # samples that a process computes at once; 0: its share;
                                                   # the gradient is that of the whole batch in any case
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"  # of autocast
    deterministic: Local[StrictBool] = False       # bitwise reproducible on GPUs (slower); on CPUs it always is
    compile: Local[StrictBool] = False             # torch.compile of the encoders' blocks; needs a C++ compiler
    checkpoint_steps: Local[Count] = 500           # steps between two checkpoints
    log_steps: Local[Count] = 10                   # steps between two lines of the log
    evaluate_epochs: Count = 1                     # epochs between two validations
    only_head: StrictBool = False                  # train the task's head, and other modules of its own, alone
    ema_decay: number(float, ge=0, lt=1) = 0.0     # of a running mean of the weights, which validation and best.pt
                                                   # use in their place; 0: none
    nonfinite_limit: Local[Count] = 20             # skipped (NaN or infinite) steps in a row that stop the run


class EvaluateConfig(Section):
    """Evaluation and feature extraction."""
    batch_size: Local[Count] = 32                  # samples that a process scores at once
    precision: Scored[Literal["fp32", "tf32", "bf16", "fp16"]] = "fp32"  # fp32, as published; faster on GPUs: bf16,
                                                   # fp16, and tf32, which rounds products


class SiteConfig(Section):
    """What differs between machines: the places of files."""
    name: OneLine = ""                             # the site's name; resolve sets it
    root: OneLine = ""                             # the data root; docs/data.md shows its layout
    tokenizer: OneLine = "roberta-base"            # a name, or a folder
    clip_tokenizer: OneLine = "openai/clip-vit-base-patch16"  # of LaViLa and AVION: a name, or a folder
    bert_tokenizer: OneLine = "distilbert-base-uncased"  # of EgoVLP: a name, or a folder
    vit: OneLine = ""                              # ViT-B/16 to start from: a timm name, a file, or random
    roberta: OneLine = ""                          # RoBERTa to start from: a name, a folder, or random
    weights: OneLine = ""                          # folder of the released checkpoints
    node_cache: Local[OneLine] = ""                # a folder on each node's own disk, such as /scratch/$USER, for
                                                   # copies of indexes; "": none
    short_side: number(int, ge=2) = 256            # of the prepared videos, pixels
    chunk_seconds: Positive = 600.0                # length of a prepared chunk of video
    encoding: Literal["random_access", "original"] = "random_access"  # of the prepared videos: random_access (clips
                                                   # are read fast) or original (as in the paper's code)
    toy: StrictBool = False                        # root holds the embedded data set, which egokit.toy makes


class LaunchConfig(Section):
    """How a job is run; local jobs ignore every key below gpus_per_task."""
    cluster: Literal["local", "slurm"] = "local"
    nodes: Count = 1                               # number of nodes
    tasks_per_node: Count = 1                      # processes on each node, one per GPU
    cpus_per_task: Size = 0                        # CPU cores of each process; 0: 1 + data.workers
    timeout_minutes: Count = 4320                  # time limit of a job; it is requeued then and resumes
    requeues: Size = 100                           # most requeues after time limits, and as many after lost ranks
    gpus_per_task: number(int, ge=0, le=1) = 1     # GPUs of each process: 1, or 0 to hide all GPUs and use the CPU
    mem_gb_per_task: NotNegative = 0.0             # memory of each process, GB; 0: the cluster's default, or
                                                   # all of the node's memory if exclusive
    partition: OneLine = ""                        # sbatch --partition; "": the cluster's default
    account: OneLine = ""                          # sbatch --account; "": the cluster's default
    qos: OneLine = ""                              # sbatch --qos; "": the cluster's default
    constraint: OneLine = ""                       # sbatch --constraint; "": the cluster's default
    exclusive: StrictBool = False                  # reserve whole nodes
    setup: ShellLines = ()                         # shell lines before the processes start: module load …, export …
    slurm: Options = field(default_factory=dict)   # further options of submitit's SlurmExecutor


class Config(Section):
    """The whole configuration of a run."""
    task: TaskConfig = field(default_factory=TaskConfig)  # which task, and its own parameters
    init: str = ""                                 # model to start from: a file, run:<notebook>/<run>, a name in
                                                   # site.weights, hf:NAME, or file.py:Class (init_forms.py)
    seed: Size = 0                                 # of every random draw
    site: SiteConfig = field(default_factory=SiteConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    launch: Local[LaunchConfig] = field(default_factory=LaunchConfig)


RANDOM = "random"                                  # site.vit or site.roberta: start from random weights

RENAMED = {  # earlier key, which older recipes, run folders and checkpoints have: key today
    "model.fused": "model.num_fused_layers", "model.vocabulary": "model.vocab_size",
    "model.positions": "model.max_positions",
    "data.tokens": "data.max_tokens", "data.evaluation_tokens": "data.eval_max_tokens",
    "data.evaluation_frames": "data.eval_frames", "data.validation_frames": "task.val_frames",
    "data.evaluation_resize": "data.eval_resize", "optim.heads_multiplier": "optim.head_lr_scale",
    "launch.processes": "launch.tasks_per_node", "launch.cpus": "launch.cpus_per_task",
    "launch.gpus": "launch.gpus_per_task", "launch.memory_gb": "launch.mem_gb_per_task",
} | {f"{section}.{key}": f"task.{key}" for section, keys in {  # keys of one task, which now stand in its Params
    "data": "val_frames relevancy_threshold",
    "train": "temperature negative_temperature retrieval_loss margin similarity_margin similarity_slack itm_weight "
             "mask_probability",
    "evaluate": "features_per_second feature_frames feature_clips feature_videos feature_format dual_softmax",
    "search": "videos window stride"}.items() for key in keys.split()}
