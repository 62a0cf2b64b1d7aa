"""A run on disk.

run.py          its folder, config.yaml, metrics.csv       checkpoint.py  files of weights and of a run's state
resume.py       resuming one                               lock.py        one process at a time in a folder or file
provenance.py   command, code, machine and data of a run   published.py   weights that others published, as ours
pretrained.py   the mean, std and class names of such weights
"""
