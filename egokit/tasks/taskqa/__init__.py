"""EgoTaskQA's questions, clips and stored vectors; the tasks stand in egotaskqa.py and egotaskqa_head.py.

vocabulary.py    answer_set.txt: made, read and written; answers -> class numbers
annotations.py   formatted_{train,val,test}_qas_encode.json -> questions; the names of clips
accuracy.py      accuracies by label, of open and binary questions, and of all
clips.py         where clips lie, in three forms, and their frames;  samples.py  data sets of questions and clips
vectors.py       stored fused vectors;  site.py  what a job needs, and the doctor's checks

vocabulary.py, annotations.py and accuracy.py import no torch.
"""
