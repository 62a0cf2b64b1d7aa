"""Labels for videos: trained networks at work.

trained.py      networks, wherever their weights come from     predictor.py      clips through one, as fast as it goes
classifier.py   a file, a tensor or pictures -> labels         bulk.py           many files, decoded while it runs
labels_file.py  results, appended line by line                 timeline.py       a window slid over a whole video
exporter.py     ONNX, torch.export, AOTInductor                timeline_files.py a timeline as files
exported.py     such files as networks
classify_files.py, classify_timeline.py, classify_live.py      what `softpool3d classify` does, and what it prints
"""
