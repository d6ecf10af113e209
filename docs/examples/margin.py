"""Charades-Ego with a max-margin loss in place of InfoNCE: a loss of one's own in one file."""
import egokit
from egokit.tasks import losses
from egokit.tasks.charades import CharadesEgo


class MaxMargin(CharadesEgo):
    def loss(self, model, batch, step):
        video_BE, text_BE = self.embeddings(model, batch)  # of the global batch: gathered, with gradients
        return {"max_margin": losses.max_margin(egokit.similarity(text_BE, video_BE), margin=self.config.train.margin)}
