"""Shows what pooling does to pixels, and what a network looks at: pictures, figures, a page.

source.py     reads a video, a folder of frames or a picture
pooled.py     clips pooled once or several times, by any kind of pooling
sheet.py      labelled panels side by side: one frame of a video, or a contact sheet
output.py     sheets to MP4, GIF and PNG
quality.py    PSNR and SSIM of what pooling leaves; quality_table.py: table, CSV, plots
gradcam.py    where and when a network sees a class; features.py: maps before and after each pooling
report.py     report.html: one page with players, figures and settings
"""
