"""Reads and writes single video files.

decoder.py      frames of a file, whatever reads them: pyav_reader.py, decord_reader.py (what decord_files.py lets it
                read), picture_folder.py (pictures.py)
frame_index.py  which frames a file has, and when          containers.py  how it is opened
packets.py      what is in it undecoded; h264.py           rate.py        frames a second
orientation.py  which side is up                           damage.py      what is missing
stream.py       a file, camera or address read once, from its beginning
encoder.py      frames to a file                           find.py        videos in a folder
remote.py       a file at an address
"""
