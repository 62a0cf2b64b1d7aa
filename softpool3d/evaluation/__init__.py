"""The evaluation of a network.

evaluator.py    scores of a split                          scores.py   probabilities and labels, and their file
losses.py       what is minimised; logits -> probabilities metrics.py  accuracies, calibration, confusion
tester.py       a whole test, which can be resumed         subject.py  the network and the split that are tested
kept.py         what an interrupted test left              results.py  the files and tables of a test
plots.py        pictures of numbers                 features.py  files of features
"""
