"""The analysis of several runs.

folders.py        what the folder of a run holds    comparison.py   runs side by side
ensemble.py       scores of several networks as one groups.py       which clips show one person or place
study.py          networks x variants x seeds       study_run.py    trains them
study_results.py  what is kept of finished runs     study_findings.py, study_report.py, study_figure.py  its page
statistics.py     paired differences, intervals     probe.py        classifiers on frozen features
measuring.py      times, taken in turns, and memory models_page.py  the tables of `softpool3d models`
"""
