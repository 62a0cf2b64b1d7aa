"""Work on many machines, by Ray.

connection.py   a cluster, and whether its machines have what this one has
files.py        the engine of `classify` and `embed`: two stages, as a pipeline of Ray Data
jobs.py         jobs as rows of Ray Data
each.py         a function for each of many jobs: what `prepare` does with each file
"""
