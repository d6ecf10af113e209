"""Charades-Ego with a max-margin loss in place of InfoNCE: a loss of one's own in one file."""
from egokit.tasks import NotNegative, losses
from egokit.tasks.charades import CharadesEgo


class MaxMargin(CharadesEgo):
    class Params(CharadesEgo.Params):
        margin: NotNegative = 0.2  # cosine of a right pair above that of a wrong one

    def loss(self, model, batch, step):
        similarity = self.similarity_part(model, batch)  # this rank's texts and clips with those of all ranks
        return {"max_margin": losses.max_margin(similarity, margin=self.config.task.margin)}
