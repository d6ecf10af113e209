"""EgoTaskQA's questions: their files, the vocabulary of answers, and accuracies.

vocabulary.py    answer_set.txt: made, read and written; answers -> class numbers
annotations.py   formatted_{train,val,test}_qas_encode.json -> questions; the names of clips
accuracy.py      accuracies by label, of open and binary questions, and of all

Nothing here imports torch.
"""
