"""Open a file as a film: its own pictures, in a format of videos, and none too large to be decoded."""
from pathlib import Path

import av
from av.codec.context import Flags

from egokit.data.video import pictures
from egokit.data.video.timeline import Refused

# Formats of videos, by FFmpeg's names, and of raw streams. Not among them are lists and scripts that name other files
# (concat, hls, dash, sdp, image2), and text that is drawn (tty).
FORMATS = ("apng,asf,av1,avi,avs2,avs3,cavsvideo,dhav,dirac,dnxhd,dv,evc,flic,flv,gif,gxf,h261,h263,h264,hevc,ivf,"
           "live_flv,lxf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,pva,rm,vc1,vc1test,vvc,wtv,"
           "yuv4mpegpipe")
SIZED = {"avi", "gif", "matroska", "mov", "nut"}  # whose header has the pictures' size, unless FFmpeg refuses it
# what FFmpeg is told of every file that it reads, here and as a program
LIMITS = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(pictures.MAX_PIXELS)}


def decoding_reason(error: Exception) -> str:
    """Return why a decoder gives no picture; where one exceeds MAX_PIXELS, some say that an argument is invalid."""
    if isinstance(error, av.error.ArgumentError):
        return f"a picture without a size, or of more than {pictures.MAX_PIXELS:,} pixels"
    return getattr(error, "strerror", None) or str(error)


def open_film(path: Path, is_file: bool = False) -> tuple:
    """Return (container, stream) of PyAV: the file and its film.

    Args:
        is_file: whether the caller has seen that it is a regular file.

    Raises:
        Refused: the file is no video, or its pictures are too large.
        av.error.FFmpegError, OSError: it can't be opened.
    """
    if not (is_file or path.is_file()):  # opening a pipe would block forever
        raise Refused("not a file, or a link to nothing")
    try:
        # a relative name such as concat:a.mp4 would be an address
        container = av.open(str(path.absolute()), metadata_errors="replace", options=LIMITS)
    except av.error.ArgumentError:
        raise Refused("no video, but a picture, a playlist, a script, a text or sound") from None
    stream = pictures.film(container)
    context = stream.codec_context
    if context is None:
        raise Refused("no decoder knows its codec")
    if context.width or SIZED & set(container.format.name.split(",")):
        pictures.check_size(context.width, context.height)
    context.options = {"max_pixels": LIMITS["max_pixels"]}
    context.flags |= Flags.unaligned  # cut off all that is said to be cropped
    return container, stream
