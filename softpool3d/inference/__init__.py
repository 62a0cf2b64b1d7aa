"""Classifies videos with trained networks.

trained.py      loads networks, wherever their weights come from
predictor.py    runs clips through a network, at the fastest batch size
classifier.py   labels one video: a file, a tensor or a list of pictures
bulk.py         labels many files, decoding while the network runs
timeline.py     slides a window over a whole video; timeline_files.py writes what it found
labels_file.py  appends results to a file, line by line
exporter.py     writes networks as ONNX, torch.export or AOTInductor; exported.py loads them again
classify_files.py, classify_timeline.py, classify_live.py      what `softpool3d classify` does, and what it prints
"""
