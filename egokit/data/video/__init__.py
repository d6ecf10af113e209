"""Video decoding: from a path and a time to frames.

open_video.py      open_video and its cache of open files; duration, rotation, and which frame is shown at a time
pyav_reader.py     the default reader;  untimed_reader.py  files without timestamps;  decord_reader.py  decord
clips.py           read_clip, read_chunked: a clip of one file, or of a video prepared in chunks
frame_sampling.py  the frame indices of a clip, one rule for each benchmark
transforms.py      crop, resize, flip and normalise
"""
