"""Training, evaluation and prediction.

trainer.py      the training loop                     evaluator.py    scores of a split, top-1 and top-5
classifier.py   a weights file -> labels for videos   checkpoint.py   files: weights, state of a run
optim.py        the optimiser; schedule.py: its rate  run.py          a run's folder, metrics.csv
losses.py       what is minimised                     keeper.py       the weights that are kept
norms.py        batch norm over other batches         freeze.py       what is not trained
board.py        TensorBoard and trackers              provenance.py   where a run comes from
sharding.py     networks in shards (FSDP)
nonfinite.py    a loss that is NaN or infinite        memory.py       out of memory, in a sentence
devices.py      accelerator, seeds, memory            progress.py     what the terminal shows
"""
