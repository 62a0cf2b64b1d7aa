"""Data sets as they are distributed: each file reads one, a folder on disk -> manifests.

kinetics.py (kinetics_lists.py: what its lists name), hmdb51.py, ucf101.py, ssv2.py; folder.py: anybody's own;
motion.py: the embedded one, which makes its videos
"""
