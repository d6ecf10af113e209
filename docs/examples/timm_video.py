"""EK-100 with a model of timm as the video encoder: it reads each frame, and the frames are averaged."""
import timm
import torch
from torch import nn

from egokit.tasks.ek100 import EK100


class TimmVideo(EK100):
    class Params(EK100.Params):
        backbone: str = "vit_tiny_patch16_224"
        pretrained: bool = False  # True downloads timm's weights

    def modules(self, model):
        model.video.requires_grad_(False)  # EgoVLP's own video side is not used
        model.video_projection.requires_grad_(False)
        name, sized = self.config.task.backbone, {"img_size": self.config.model.image_size}
        fixed = timm.get_pretrained_cfg(name).fixed_input_size  # a ViT is made for a size, a ResNet takes any
        encoder = timm.create_model(name, pretrained=self.config.task.pretrained, num_classes=0,
                                    **sized if fixed else {})
        self.statistics = timm.data.resolve_model_data_config(encoder)
        return {"encoder": encoder, "projection": nn.Linear(encoder.head_hidden_size, model.embed_dim)}

    def embed_video(self, model, frames):
        mean, std = (torch.tensor(self.statistics[key], device=frames.device)[:, None, None] for key in ("mean", "std"))
        pixels = (frames.flatten(0, 1) / 255 - mean) / std
        features = model.own["encoder"](pixels).unflatten(0, frames.shape[:2]).mean(1)
        return model.own["projection"](features).float()
