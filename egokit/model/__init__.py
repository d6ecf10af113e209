"""The network, its files, and how exactly it computes.

egovlp.py          EgoVLP: video and text encoders with fusion in the backbone, and what users call
video_encoder.py   ViT-B/16 with divided space-time attention;  text_encoder.py  RoBERTa, tokens;  layers.py  shared parts
input_checks.py    frames and texts that a user gives, checked and bounded in memory
weights.py         load, save, convert; released_keys.py  names of the released files
checkpoints.py     checkpoint files; safe_pickle.py, tensor_file.py  reading them without executing anything
precision.py       float32 or TensorFloat-32 products, deterministic algorithms
"""
