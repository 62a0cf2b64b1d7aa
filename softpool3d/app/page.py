"""What stands where on the page, and which answer belongs to which control."""

from __future__ import annotations

import gradio as gr

from softpool3d.app.answers import KERNELS, SECONDS, Answers
from softpool3d.app.live import Live
from softpool3d.models.pools import KINDS
from softpool3d.visual.pooled import STRIDE

_ONE = {"concurrency_id": "network", "concurrency_limit": 1}  # visitors take turns: there is one network
_HIDDEN = {"api_visibility": "private"}
_EVERY_S = 5.0  # how often the page asks whether a run has changed
_WEBCAM = gr.WebcamOptions(mirror=False)  # a mirrored clip moves to the other side


def page(answers: Answers, live: Live) -> gr.Blocks:
    """Returns the page, to be launched."""
    with gr.Blocks(title="softpool3d", analytics_enabled=False, delete_cache=(3600, 86400)) as made:
        gr.Markdown("# softpool3d")
        with gr.Tab("Video"):
            _of_video(made, answers)
        with gr.Tab("Training"):
            _of_run(made, live)
    return made


def _of_video(made: gr.Blocks, answers: Answers) -> None:
    with gr.Row():
        with gr.Column(min_width=320):
            video = gr.Video(
                label="Video", sources=["upload", "webcam"], include_audio=False, buttons=[],
                webcam_options=_WEBCAM, elem_id="video",
            )  # fmt: skip
            # the file as it was sent: gradio would take its sound away, by a program that need not be there
            video.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
            weights = gr.Dropdown(answers.weights(), value=answers.first, label="Weights", filterable=False)
        with gr.Column(min_width=320):
            labels = gr.Label(label="Labels", show_heading=False, elem_id="labels")
            note = _html("note")
            with gr.Row():
                as_json = gr.DownloadButton("JSON", size="sm", min_width=80)
                as_csv = gr.DownloadButton("CSV", size="sm", min_width=80)
    with gr.Tabs():
        with gr.Tab("Timeline"):
            timeline = _html("timeline")
        with gr.Tab("Grad-CAM"):
            with gr.Row(elem_classes="asked"):
                target = gr.Dropdown([], label="What speaks for", info=f"in the first {SECONDS:g} seconds")
                explain = gr.Button("Show", scale=0, min_width=120, elem_id="explain")
            unexplained = _html("unexplained")
            heat = gr.Video(label="Grad-CAM", show_label=False, buttons=[], elem_id="heat")
        with gr.Tab("Pooling"):
            with gr.Row(elem_classes="asked"):
                kinds = gr.Dropdown([*KINDS, STRIDE], value=["soft", "max"], multiselect=True, label="Kinds")
                kernel = gr.Dropdown(list(KERNELS), value="4x4x4", label="Kernel: frames x rows x columns")
                beta = gr.Slider(0, 255, 16, step=1, label="SoftPool's beta, for pixels in [0, 1]")
                pool = gr.Button("Show", scale=0, min_width=120, elem_id="pool")
            unpooled, pooled = _html("unpooled"), _html()
    shown = [labels, timeline, as_json, as_csv, target, note]
    gr.on(
        [video.change, weights.change], answers.label, [video, weights], shown,
        show_progress_on=[labels, timeline], trigger_mode="always_last", **_ONE, **_HIDDEN,
    )  # fmt: skip
    video.change(
        lambda: (None, "", "", ""), None, [heat, unexplained, pooled, unpooled], show_progress="hidden", **_HIDDEN
    )
    explain.click(answers.gradcam, [video, weights, target], [heat, unexplained], **_ONE, **_HIDDEN)
    pool.click(answers.pool, [video, kinds, kernel, beta], [pooled, unpooled], **_ONE, **_HIDDEN)
    made.load(lambda: gr.Dropdown(answers.weights()), None, weights, show_progress="hidden", **_HIDDEN)


def _of_run(made: gr.Blocks, live: Live) -> None:
    run = gr.Dropdown([], label=f"Run in {live.folder}", filterable=False)
    stands, curves = _html(), _html()
    with gr.Row():
        with gr.Column(min_width=320):
            confusion = _html()
        with gr.Column(min_width=320):
            worst = _html()
    seen = gr.State(None)
    shown = [run, stands, curves, confusion, worst, seen]

    def refresh(name: str | None, before: tuple | None) -> tuple:
        names = live.names()
        name = name if name in names else next(iter(names), None)
        now = set(names), name, live.changed(name)
        if now == before:
            return tuple(gr.skip() for _ in shown)
        listed = gr.skip() if before and now[0] == before[0] else gr.Dropdown(names, value=name)
        return listed, *live.look(name), now

    answer = {"fn": refresh, "inputs": [run, seen], "outputs": shown, "show_progress": "hidden", **_HIDDEN}
    for event in (made.load, run.change, gr.Timer(_EVERY_S).tick):
        event(**answer)


def _html(name: str | None = None) -> gr.HTML:
    return gr.HTML(apply_default_css=False, elem_id=name)
