"""From a path and a time to frames.

open_video.py      opens a file once and keeps it open; which way up it is; which frame is shown at a time
pyav_reader.py     the default reader;  untimed_reader.py  files without timestamps;  decord_reader.py  decord
clips.py           a clip of a file or of its chunks, as a tensor; egokit.read_clip
frame_sampling.py  which frames of a clip, by each benchmark's own rule
transforms.py      crops, resizing and normalisation
"""
