"""A model in one file, as a user writes it: the colours of a clip's quarters, and the letters of a text."""
import torch
import torch.nn.functional as F
from torch import nn

import egokit


class Colours(egokit.Dual):
    def __init__(self, seed="0"):
        super().__init__()
        self.image_size, self.frames = 64, None  # any number of frames
        self.mean, self.std = (0.1, 0.5, 0.9), (0.5, 0.2, 0.3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self.video, self.letters = nn.Linear(3 * 4 * 4, 24), nn.Embedding(128, 24)

    def tokens(self, texts, longest):
        ids = [[min(ord(letter), 127) for letter in text[:longest]] for text in texts]
        rows = [torch.tensor(row + [0] * (max(map(len, ids)) - len(row))) for row in ids]
        return {"letters": torch.stack(rows).to(self.device)}

    def embed_text(self, tokens):
        letters_BL = tokens["letters"]
        places_L = 1 + torch.arange(letters_BL.shape[1], device=letters_BL.device)
        return ((letters_BL > 0) / places_L).unsqueeze(1).matmul(self.letters(letters_BL)).squeeze(1).float()

    def embed_video(self, frames):
        quarters_BTCHW = F.adaptive_avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])
        return self.video(quarters_BTCHW.mean(1).flatten(1)).float()
