"""A wrong cell, row or line of an annotation table is named, and so is a clip whose times contradict its video."""
import pytest
from annotation_files import CLASSES, CLIPS, EGOCLIP, METADATA, SENTENCES, VIDEOS, edited, refused, user

from egokit.data.egoclip_table import EgoClipTable
from egokit.data.video import clips, frame_sampling
from egokit.data.video.open_video import VideoError


@pytest.fixture
def use(resolve, copied):
    return user(resolve, copied)


CELLS = [
    *((CLIPS, {"start_timestamp": bad}, ["line 4", "start_timestamp", repr(bad), "expected hours:minutes:seconds"])
      for bad in ("abc", "", "12.5", "nan", "-00:00:01.00", "00:00", "00:00:٣")),
    *((CLIPS, {"all_noun_classes": bad}, ["line 4", "all_noun_classes", "expected a list of class numbers"])
      for bad in ("8", "", "[8", "['book']", "[8 9]", "[-1]", "{8}", "[8,,9]", "[__import__('os').getcwd()]")),
    *((CLIPS, {"verb_class": bad}, ["line 4", "verb_class", "expected a whole number"])
      for bad in ("abc", "", "1.5", "-1", "nan")),
    *((CLIPS, {name: ""}, ["line 4", name, "expected text"])
      for name in ("narration_id", "participant_id", "video_id", "narration")),
    (CLIPS, {"narration_id": "P01_11_0"}, ["line 4", "'P01_11_0' is in line 2, too"]),
    (SENTENCES, {"narration_id": "P01_11_0"}, ["line 4", "'P01_11_0' is in line 2, too"]),
    (SENTENCES, {"narration": " "}, ["line 4", "narration", "expected text"]),
    *((file, {name: None}, [f"columns ['{name}'] are missing", "found ["]) for file, name in
      ((CLIPS, "start_timestamp"), (CLIPS, "all_noun_classes"), (SENTENCES, "narration"), (VIDEOS, "actions"),
       (VIDEOS, "id"))),
    *((VIDEOS, {"actions": bad}, ["line 4", "actions", repr(bad)[:20]])
      for bad in ("c001", "c001 1.0", "c001 abc 2.0", "c001 nan 2.0", "c001 -1.0 2.0", "c999 1.0 2.0",
                  "c001 1.0 2.0;", "c001  1.0 2.0")),
    (VIDEOS, {"id": "RXFSE"}, ["line 4", "'RXFSE' is in line 2, too"]),
    (VIDEOS, {"id": ""}, ["line 4", "expected text"]),
    *((METADATA, {name: bad}, ["line 4", name, "expected seconds"])
      for name in ("t_start", "t_end") for bad in ("abc", "", "nan", "inf", "-1")),
    (METADATA, {"narration": ""}, ["line 4", "expected text"]),
    (METADATA, {"t_end": None}, ["columns ['t_end'] are missing"]),
]


@pytest.mark.parametrize("name, cells, words", CELLS)
def test_a_wrong_cell_is_named(use, name, cells, words):
    do, root = use
    edited(root / name, 2, "\t" if name == METADATA else ",", **cells)
    refused(lambda: do(name), root / name, *words)


@pytest.mark.parametrize("name, cells, message", [
    (CLIPS, {"stop_timestamp": "00:00:00.00"},
     "1 of [0-9]+ rows end before they begin, such as narration_id 'P01_11_2'"),
    (METADATA, {"t_start": "9", "t_end": "3"},
     r"1 of [0-9]+ rows end before they begin, such as id .*t_start 9 s, t_end 3 s")])
def test_rows_that_end_before_they_begin_are_counted(use, name, cells, message):
    do, root = use
    edited(root / name, 2, "\t" if name == METADATA else ",", **cells)
    with pytest.warns(UserWarning, match=message):
        do(name)


@pytest.mark.parametrize("name", [CLIPS, SENTENCES, VIDEOS, METADATA, EGOCLIP])
@pytest.mark.parametrize("delimiter", [";", "\t", ",", "|"])
def test_a_wrong_delimiter_is_named(use, name, delimiter):
    do, root = use
    path, own = root / name, "\t" if name in (METADATA, EGOCLIP) else ","
    path.write_text(path.read_text().replace(own, delimiter))
    if own != delimiter:
        refused(lambda: do(name), path, "expected", "found")


@pytest.mark.parametrize("name", [CLIPS, SENTENCES, VIDEOS, METADATA])
def test_a_row_that_is_cut_off_or_has_a_field_too_many_is_named(use, name):
    do, root = use
    path, own = root / name, "\t" if name == METADATA else ","
    whole = path.read_text().rstrip("\n")
    last = whole.count("\n") + 1
    path.write_text(whole.rpartition(own)[0])
    refused(lambda: do(name), path, f"line {last}: ")
    path.write_text(f"{whole}{own}more\n")
    refused(lambda: do(name), path, f"line {last}: ")
    path.write_text(whole.replace(own, f'{own}"', 1) + "\n")
    refused(lambda: do(name), path)


def test_words_that_pandas_takes_for_nothing_are_words(use):
    do, root = use
    edited(root / SENTENCES, 1, narration="null")
    assert do(SENTENCES).sentences.narration.iloc[1] == "null"


CLASS_LINES = [("picking up", "expected lines like"), ("c024", "expected lines like"),
               ("c000 again", "is listed twice"), ("x17 no class", "expected lines like")]


@pytest.mark.parametrize("line, message", CLASS_LINES)
def test_a_wrong_line_of_the_class_list_is_named(use, line, message):
    do, root = use
    with open(root / CLASSES, "a") as file:
        file.write(line + "\n")
    refused(lambda: do(CLASSES), root / CLASSES, "line 25", message)


def test_a_class_file_that_lacks_a_class_of_the_list(use):
    do, root = use
    path = root / CLASSES
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    refused(lambda: do(CLASSES), root / VIDEOS, "the class file doesn't know")


def test_a_table_of_which_no_row_is_well_formed(use):
    do, root = use
    text = (root / EGOCLIP).read_text()
    (root / EGOCLIP).write_text(text.split("\n")[0] + "\n" + "7\n" * 5)
    refused(lambda: do(EGOCLIP), root / EGOCLIP, "none of its 5 rows is well formed")
    (root / EGOCLIP).write_text(text[:len(text) // 2])
    with pytest.warns(UserWarning, match="malformed rows"):
        assert 0 < len(EgoClipTable(root / EGOCLIP)) < text.count("\n")


def pick(first, last):
    return frame_sampling.sample_frames(first, last, 4)


def test_a_clip_that_begins_before_its_video_is_read_from_its_start(project):
    """EgoClip's times are estimated from the narration's time, and may be just below 0."""
    from egokit.toy import read_frame_number
    folder = next((project / "outputs/toy/Ego4D_Chunked").iterdir())
    pixels = clips.read_chunked(folder, -0.5, 1.0, pick, 30.0)
    assert [read_frame_number(frame) for frame in pixels] == pick(0, 10).tolist()


def test_a_clip_far_beyond_its_video_is_an_error(project):
    """A moment beyond the end gives the last frame, but a minute beyond it is an error.

    Then it is another video, or one that has lost its end.
    """
    folder = next((project / "outputs/toy/Ego4D_Chunked").iterdir())  # of at most 45 s
    with pytest.raises(VideoError, match=rf"{folder}/\d\.mp4"):
        clips.read_chunked(folder, 100.0, 101.0, pick, 600.0)
