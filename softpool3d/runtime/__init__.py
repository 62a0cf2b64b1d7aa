"""Where a program runs.

devices.py      the device, its seeds and its memory       processes.py  several processes of one run
interrupt.py    signals as a request                       progress.py   what a terminal shows of long work
"""
