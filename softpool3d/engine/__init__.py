"""Training and testing.

trainer.py      the training loop                     evaluator.py    scores of a split
checkpoint.py   files: weights, state of a run        resume.py       going on with a run; lock.py: one at a time
optim.py        the optimiser; schedule.py: its rate  run.py          a run's folder, metrics.csv
losses.py       what is minimised                     keeper.py       the weights that are kept
norms.py        batch norm over other batches         freeze.py       what is not trained
sharding.py     networks in shards (FSDP)             processes.py    what several processes agree on
nonfinite.py    a loss that is NaN or infinite        memory.py       out of memory, in a sentence
pretrained.py   what public weights bring along       bad_files.py    files that turn out unreadable
board.py        TensorBoard and trackers              provenance.py   where a run comes from
meter.py        loss, rate, where time goes           report.py       what a run says; progress.py: on the terminal
tester.py       a whole test, resumable               results.py      the files and tables of a test
metrics.py      what scores are worth                 scores.py       scores, and the file that keeps them
plots.py        pictures of numbers                   devices.py      accelerator, seeds, memory
interrupt.py    signals as a request                  published.py    weights of any origin, ready to use
"""
