"""ClassHead: scores of classes, such as answers in words, from the model's state of a clip.

Shapes: B clips or pairs of clip and question, D width, K classes.

Source: EgoVLPv2's EgoTaskQA, model/video_qa_model_linear_end2end.py, whose two layers are both K wide.
"""
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

Reads = Literal["fusion", "video"]


class ClassHead(nn.Module):
    """One linear layer, or two with a ReLU between them, behind a dropout.

    Example:
        head = ClassHead(model.config.width, ["yes", "no"])
        logits_BK = head(model.fused_video(model.fusion_trunk(frames), model.tokens(questions), frames.shape[1]))

    Attributes:
        classes: the classes' names, () if only their number is known.
        reads: what the state is: "fusion", the fused state of clip and text (`EgoVLP.fused_video`), or "video", the
            clip's embedding alone (`EgoVLP.embed_video`).
    """
    kind: ClassVar[str] = "class"  # what a checkpoint's record calls it

    def __init__(self, width: int, classes: Sequence[str] | int, hidden: int = 0, dropout: float = 0.2,
                 reads: Reads = "fusion"):
        """Make a head with PyTorch's initial weights.

        Args:
            width: D.
            classes: the names of the K classes, or K.
            hidden: width of the layer before the last one; 0 for none.
            dropout: share of the last layer's input that training leaves out.

        Raises:
            ValueError: there are no classes, or `reads` is neither "fusion" nor "video".
        """
        super().__init__()
        self.classes = () if isinstance(classes, int) else tuple(classes)
        self.num_classes = classes if isinstance(classes, int) else len(self.classes)
        if self.num_classes < 1 or reads not in get_args(Reads):
            raise ValueError(f"a head of {self.num_classes} classes that reads {reads!r}: expected one class or more, "
                             "and 'fusion' or 'video'")
        self.reads = reads
        self.fc1 = nn.Linear(width, hidden) if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden or width, self.num_classes)

    def forward(self, states_BD: Tensor) -> Tensor:
        """Return the classes' logits, (B, K)."""
        if self.fc1 is not None:
            states_BD = self.fc1(states_BD).relu()
        return self.fc2(self.dropout(states_BD))

    def settings(self) -> dict:
        """Return the arguments that make a head of this shape, as plain values."""
        first = self.fc1 or self.fc2
        return {"width": first.in_features, "classes": list(self.classes) or self.num_classes,
                "hidden": self.fc1.out_features if self.fc1 else 0, "dropout": self.dropout.p, "reads": self.reads}
