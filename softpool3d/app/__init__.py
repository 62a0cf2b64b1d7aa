"""A page in the browser: `softpool3d app`. It shows what inference/, visual/ and analysis/ return.

server.py     serves the page on this machine, until Ctrl-C
page.py       what stands where on the page, and which answer belongs to which control
answers.py    labels, timeline, Grad-CAM and pooled clips of a video
live.py       a run while it trains: curves, confusion, worst clips
markup.py     HTML of what gradio has no component for
"""
