"""ClassHead: scores of classes, such as answers in words, from the model's state of a clip.

Shapes: B clips or pairs of clip and question, D width, K classes.

Source: EgoVLPv2's EgoTaskQA, model/video_qa_model_linear_end2end.py, whose two layers are both K wide.
"""
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from egokit.config.names import is_hidden, shortened

Reads = Literal["fusion", "video"]
LARGEST = 100_000  # number of classes, and width of a layer
LONGEST = 500      # characters of a class's name


class ClassHead(nn.Module):
    """One linear layer, or two with a ReLU between them, behind a dropout.

    Example:
        head = ClassHead(model.config.width, ["yes", "no"])
        logits_BK = head(model.fused_video(model.fusion_trunk(frames), model.tokens(questions), frames.shape[1]))

    Attributes:
        classes: the classes' names, () if only their number is known.
        reads: what the state is: "fusion", the fused state of clip and text (`EgoVLP.fused_video`), or "video", the
            clip's embedding alone (`EgoVLP.embed_video`).
        model_id: `recorded_head.model_id` of the model whose stored states it was trained on; "" if it was trained
            with its model.
    """
    kind: ClassVar[str] = "class"  # what a checkpoint's record calls it

    def __init__(self, width: int, classes: Sequence[str] | int, hidden: int = 0, dropout: float = 0.2,
                 reads: Reads = "fusion", model_id: str = ""):
        """Make a head with PyTorch's initial weights.

        Args:
            width: D.
            classes: the names of the K classes, or K.
            hidden: width of the layer before the last one; 0 for none.
            dropout: share of the last layer's input that training leaves out.
            reads, model_id: see the class.

        Raises:
            ValueError: a size is out of bounds, a name is no text of one line, or `reads` is something else.
        """
        super().__init__()
        self.classes = () if isinstance(classes, int) else checked_names(classes)
        self.num_classes = classes if isinstance(classes, int) else len(self.classes)
        for what, size, least in (("classes", self.num_classes, 1), ("width", width, 1), ("hidden", hidden, 0)):
            if type(size) is not int or not least <= size <= LARGEST:
                raise ValueError(f"a head's {what}: expected a whole number from {least} to {LARGEST:,}, got {size!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"a head's dropout: expected a number between 0 and 1, got {dropout!r}")
        if reads not in get_args(Reads):
            raise ValueError(f"a head reads {reads!r}: expected 'fusion' or 'video'")
        if not isinstance(model_id, str) or len(model_id) > LONGEST:
            raise ValueError(f"a head's model_id: expected a short text, got {shortened(model_id, 80)!r}")
        self.reads, self.model_id = reads, model_id
        self.fc1 = nn.Linear(width, hidden) if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden or width, self.num_classes)

    @property
    def in_features(self) -> int:
        """D, the width of the states."""
        return (self.fc2 if self.fc1 is None else self.fc1).in_features

    def width_of(self, model) -> int:
        """Return the width of the states that an EgoVLP has for the head to read: it should be `in_features`."""
        return model.config.width if self.reads == "fusion" else model.embed_dim

    def forward(self, states_BD: Tensor) -> Tensor:
        """Return the classes' logits, (B, K)."""
        if self.fc1 is not None:
            states_BD = self.fc1(states_BD).relu()
        return self.fc2(self.dropout(states_BD))

    def settings(self) -> dict:
        """Return the arguments that make a head of this shape, as plain values."""
        hidden = 0 if self.fc1 is None else self.fc1.out_features
        return {"width": self.in_features, "classes": list(self.classes) or self.num_classes, "hidden": hidden,
                "dropout": self.dropout.p, "reads": self.reads, "model_id": self.model_id}


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes.

    Raises:
        ValueError: they are too many, or one is no text of one line; the message names it.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) > LARGEST:
        raise ValueError(f"names of classes: expected at most {LARGEST:,} texts, got {shortened(names, 80)!r}")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST or any(map(is_hidden, name)):
            raise ValueError(f"class {number} is called {shortened(name, 80)!r}: expected a text of one line, of at "
                             f"most {LONGEST} characters")
    return tuple(names)


def difference(saved: ClassHead, given: ClassHead) -> str:
    """Return how the classes, or the input, of two heads differ; "" if weights of one can be those of the other."""
    if saved.reads != given.reads:
        return f"it reads {saved.reads!r}, not {given.reads!r}"
    sizes = f"it has {saved.num_classes:,} classes, not {given.num_classes:,}"
    pairs = enumerate(zip(saved.classes, given.classes, strict=False))
    if first := next(((number, pair) for number, pair in pairs if pair[0] != pair[1]), None):
        number, (theirs, ours) = first
        same = sizes if saved.num_classes != given.num_classes else f"both have {saved.num_classes:,} classes"
        return f"its class {number} is {shortened(theirs, 80)!r}, not {shortened(ours, 80)!r} ({same})"
    return sizes if saved.num_classes != given.num_classes else ""
