"""Video decoding: from a path and a time to frames. There is one way to read a file, of any format.

open_video.py      open_video and its cache of open files
timeline.py        which frame is shown when, on the player's clock; the errors
media_file.py      the film of a file, and its frames' numbers
pyav_reader.py     the default reader;  untimed_reader.py  AVI and raw streams;  decord_reader.py  decord
past_damage.py     what a tolerant reader gives in place of damaged frames
pictures.py        upright, with square pixels, and of one size
picture_files.py   frames that are stored as pictures
clips.py           read_clip, read_chunked: a clip of one file, or of a video prepared in chunks
frame_sampling.py  the frame indices of a clip, one rule for each benchmark
transforms.py      crop, resize, flip and normalise
"""
