"""Training, evaluation and prediction.

trainer.py      the training loop                     evaluator.py    scores of a split
classifier.py   a weights file -> labels for videos   checkpoint.py   files: weights, state of a run
optim.py        the optimiser; schedule.py: its rate  run.py          a run's folder, metrics.csv
losses.py       what is minimised                     keeper.py       the weights that are kept
norms.py        batch norm over other batches         freeze.py       what is not trained
board.py        TensorBoard and trackers              provenance.py   where a run comes from
sharding.py     networks in shards (FSDP)
nonfinite.py    a loss that is NaN or infinite        memory.py       out of memory, in a sentence
tester.py       a whole test, resumable               results.py     the files and tables of a test
metrics.py      what scores are worth                 scores.py      scores, and the file that keeps them
ensemble.py     scores of several networks as one     plots.py       pictures of numbers
folders.py      what a run's folder tells             comparison.py  runs side by side
study.py        networks x variants x seeds           study_report.py, statistics.py: its page and intervals
devices.py      accelerator, seeds, memory            progress.py     what the terminal shows
"""
