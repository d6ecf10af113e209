"""Peers: other families of dual encoders on egokit's data path.

keys.py            which family a file is of, and the names of its keys
families.py        sizes from shapes, strict loading, resizing in time, each family's own evaluation
peer.py            the model of EgoVLP, LaViLa and AVION;  video_encoders.py, clip_blocks.py  its parts
hugging_face.py    CLIP and SigLIP from a Hugging Face folder
tokenizers.py      the tokenizers of all of them

docs/models.md says which released file is for what.
"""
from egokit.model.peers.families import build, recommended, shape_of
from egokit.model.peers.keys import family_of, refuse

__all__ = ["build", "family_of", "load_folder", "recommended", "refuse", "shape_of", "shape_of_folder"]


def load_folder(folder, tokenizer=None):
    """Return the CLIP or SigLIP of a Hugging Face folder: see `hugging_face.load_folder`."""
    from egokit.model.peers import hugging_face
    return hugging_face.load_folder(folder, tokenizer)


def shape_of_folder(folder):
    """Return family, image_size and more of a Hugging Face folder: see `hugging_face.shape_of_folder`."""
    from egokit.model.peers import hugging_face
    return hugging_face.shape_of_folder(folder)
