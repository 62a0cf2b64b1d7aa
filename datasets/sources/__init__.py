"""Reads data sets as they are distributed: each file turns the folder of one data set into manifests.

kinetics.py (kinetics_lists.py reads its lists), hmdb51.py, ucf101.py, ssv2.py; folder.py: anybody's own videos;
motion.py: the embedded data set, which makes its videos
"""
