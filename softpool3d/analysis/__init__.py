"""The analysis of several runs.

folders.py      what the folder of a run holds      comparison.py   runs side by side
ensemble.py     scores of several networks as one   study.py        networks x variants x seeds
study_report.py its page; statistics.py: paired differences and their intervals
probe.py        classifiers on frozen features      groups.py   which clips show one person or place
measuring.py    times, taken in turns, and memory; models_page.py: the tables of `softpool3d models`
"""
