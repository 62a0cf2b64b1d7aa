"""Classifies videos with trained networks, and turns them into features.

trained.py      loads networks, wherever their weights come from
predictor.py    runs clips through a network, at the fastest batch size
classifier.py   labels one video: a file, a tensor or a list of pictures
embedder.py     turns it into features of a layer (layers.py)
bulk.py         runs many files through a network, decoding meanwhile
windows.py      slides a window over a whole video; timeline.py: its labels, which timeline_files.py writes
each_file.py    what commands for many files share; one_each.py: with a file for each video
growing_file.py appends results to a file, line by line: labels_file.py, features_file.py
exporter.py     writes networks as ONNX, torch.export or AOTInductor; exported.py loads them again
classify_files.py, classify_timeline.py, classify_live.py      what `softpool3d classify` does, and what it prints
embed_files.py  what `softpool3d embed` does
"""
