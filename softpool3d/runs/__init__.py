"""A run on disk.

run.py          its folder, config.yaml, metrics.csv       checkpoint.py  files of weights and of a run's state
resume.py       going on with one                          lock.py        one process at a time in a folder or file
provenance.py   what a run was made by, and of             published.py   weights that others published, as ours
pretrained.py   what such weights bring along beside their values
"""
