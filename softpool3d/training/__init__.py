"""The training of networks.

trainer.py      `train`, and the loop: `Training`          setup.py            what it works with, built or restored
state.py        where a run stands                         optim.py            optimiser, its rate, what is frozen
norms.py        batch norm over other batches              sharding.py         networks in shards (FSDP)
guard.py        a loss or gradient that is no number       keeper.py           the weights that are kept
meter.py        loss, rate, where time goes                progress_report.py  the lines and rows of a run
board.py        TensorBoard and other trackers             bad_files.py        files that turn out unreadable
preflight.py    checks before a run begins                 average.py          an average of the weights
"""
