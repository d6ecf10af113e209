"""The network, its checkpoint files, and how exactly it computes.

dual.py            Dual, the base of every model that embeds clips and texts
egovlp.py          EgoVLP: video and text encoders with fusion in the backbone, and what users call
video_encoder.py   ViT-B/16 with divided space-time attention;  text_encoder.py  RoBERTa, and the tokenizer
class_head.py      a head of classes, such as answers;  own_modules.py  heads and other modules that tasks add
roles.py           which parameters do what;  pairs.py  pairs of clips and texts
layers.py          linear layers and attention of both encoders;  heads.py  projections, poolers, the MLM head
cpu_fast_paths.py  what only makes a CPU faster
input_checks.py    checks of frames and texts that users give, and parts that fit in memory
sources.py         what `init` may name, and what its files tell;  own_model.py  a class of a user's file
weights.py         load, save and convert models;  backbones.py  what pre-training starts from
released_keys.py   key names of the released files
hub.py             folders and the cache of the Hugging Face hub;  pretrained.py  EgoVLPv2 models in them
recorded_shape.py  the shape of a checkpoint's network, and memory for its weights
checkpoints.py     checkpoint files;  tensor_file.py  reads them without executing anything
peers/             other families: EgoVLP, LaViLa, AVION, CLIP and SigLIP (docs/models.md)
precision.py       float32 or TensorFloat-32 products, deterministic algorithms
"""
