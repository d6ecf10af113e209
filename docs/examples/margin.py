"""Charades-Ego with a max-margin loss in place of InfoNCE: a loss of one's own in one file."""
import egokit
from egokit.tasks import NotNegative, losses
from egokit.tasks.charades import CharadesEgo


class MaxMargin(CharadesEgo):
    class Params(CharadesEgo.Params):
        margin: NotNegative = 0.2  # cosine of a right pair above that of a wrong one

    def loss(self, model, batch, step):
        video_BE, text_BE = self.embeddings(model, batch)  # of the global batch: gathered, with gradients
        return {"max_margin": losses.max_margin(egokit.similarity(text_BE, video_BE), margin=self.config.task.margin)}
