"""The original's training step in plain equations, which train_step.py compares with egokit's."""
import torch
import torch.nn.functional as F
from plain import Plain
from torch.utils.checkpoint import checkpoint

from egokit.config.schema import Config
from egokit.data.video.transforms import normalise
from egokit.model.dual import similarity
from egokit.model.egovlp import EgoVLP
from egokit.model.released_keys import rename
from egokit.tasks import losses
from egokit.train import optim
from egokit.train.parts import Part


class PlainSchedule(Plain):
    """The original's step: three passes from the pixels, each block recomputed."""

    def __init__(self, model: EgoVLP, config: Config):
        super().__init__({rename(name, "released"): parameter for name, parameter in model.named_parameters()})
        self.config = config
        recipe = config.optim
        self.optimizer = torch.optim.AdamW(optim.param_groups(model, recipe), lr=recipe.lr, betas=recipe.betas,
                                           eps=recipe.eps, foreach=False, fused=False)

    def block(self, *inputs):
        return checkpoint(super().block, *inputs, use_reentrant=False)

    def layer(self, *inputs):
        return checkpoint(super().layer, *inputs, use_reentrant=False)

    def loss(self, batch: dict, step: int) -> dict:
        frames, tokens, recipe = normalise(batch["video"]), batch["tokens"], self.config.task
        similarity_BB = similarity(self.encode_text(tokens), self.encode_video(frames))
        positives = losses.positives(batch["verbs"], batch["nouns"])
        masked = tokens | {"input_ids": batch["masked_ids"]}
        text, video, label = losses.draw_pairs(Part.whole(similarity_BB), Part.whole(positives),
                                               recipe.negative_temperature, self.config.seed, step)
        pairs = self.itm_logits(frames[video], {key: value[text] for key, value in tokens.items()})
        return {"egonce": losses.egonce(similarity_BB, positives, recipe.temperature),
                "mlm": F.cross_entropy(self.mlm_logits(frames, masked).flatten(0, 1), batch["labels"].flatten()),
                "itm": recipe.itm_weight * F.cross_entropy(pairs, label)}

    def steps_on(self, *batches: dict) -> None:
        for batch in batches:
            sum(self.loss(batch, 0).values()).backward()
            optim.set_rate(self.optimizer, self.config.optim.lr)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
