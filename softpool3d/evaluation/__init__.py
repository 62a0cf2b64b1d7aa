"""What a network's answers are worth.

evaluator.py    scores of a split                          scores.py   probabilities and labels, and their file
losses.py       what is minimised; logits -> probabilities metrics.py  what scores are worth
tester.py       a whole test, resumable: subject.py: of what network; kept.py: what an interrupted one left
results.py      the files and tables of a test             plots.py    pictures of numbers
"""
