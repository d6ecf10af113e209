"""Charades-Ego by a linear head on frozen features: classes are recognised without their sentences."""
import torch
import torch.nn.functional as F
from torch import nn

from egokit.tasks import Share
from egokit.tasks.charades import CharadesEgo
from egokit.train import distributed


class LinearHead(CharadesEgo):
    class Params(CharadesEgo.Params):
        dropout: Share = 0.1  # of the features

    def head(self, model):
        model.requires_grad_(False)
        return nn.Sequential(nn.Dropout(self.config.task.dropout), nn.Linear(model.embed_dim, len(self.classes)))

    def loss(self, model, batch, step):
        with torch.no_grad():
            video_bE = self.embed_video(model, batch["video"])
        logits_bK = model.head(video_bE).float()
        class_b = torch.tensor([self.prompts().index(text) for text in batch["text"]], device=logits_bK.device)
        counts = distributed.sizes(len(class_b), class_b.device)  # samples of every rank: a share of the global mean
        total = F.cross_entropy(logits_bK, class_b, reduction="sum")
        return {"cross_entropy": total * distributed.world_size() / sum(counts)}

    def score_batch(self, model, batch):
        logits_bK = model.head(self.embed_video(model, batch["video"]))
        return {"index": batch["index"].numpy(force=True), "video": logits_bK.float().softmax(-1).numpy(force=True)}

    def score_matrix(self, rows, prompts_KE):
        return rows["video"]
