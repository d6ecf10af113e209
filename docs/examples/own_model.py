"""Colours as a model: a clip is how much it shows of six colours, and a text is those that it names."""
import torch

import egokit

COLOURS = {"red": (210, 60, 50), "blue": (60, 100, 200), "green": (70, 160, 80), "yellow": (230, 200, 60),
           "purple": (140, 80, 170), "white": (235, 235, 235)}  # 0..255


class Colours(egokit.Dual):
    image_size = 64                        # side of a frame, pixels
    frames = None                          # most frames of a clip; None: any number
    mean, std = (0, 0, 0), (1, 1, 1)       # embed_video gets (pixels / 255 - mean) / std; ImageNet's by default

    def __init__(self):                    # (self, weights) for init: docs/examples/own_model.py:Colours:weights
        super().__init__()
        self.register_buffer("colours", torch.tensor(list(COLOURS.values())) / 255)

    def tokens(self, texts, longest):
        words = [text.lower().split()[:longest] for text in texts]
        return {"named": torch.tensor([[name in text for name in COLOURS] for text in words], device=self.device)}

    def embed_text(self, tokens):
        return tokens["named"].float()     # (B, 6)

    def embed_video(self, frames):         # (B, T, 3, 64, 64)
        pixels = frames.float().movedim(2, -1).flatten(1, 3)
        near = (-40 * torch.cdist(pixels, self.colours.float()).square()).exp()
        return near.mean(1)                # (B, 6)
