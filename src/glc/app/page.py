"""The page itself, in gradio. It asks no other machine for anything: no fonts, analytics or share links."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

# Read when gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GLC_OFFLINE", "1")

import gradio as gr
import numpy as np

from glc.app.service import OWN, Coded, Studio

PNG = "png"
"""Of images that the page shows: it adds no loss of its own."""
_HINTS = {
    "encoder": "No such encoder is known for this model. `scripts/run_stages.py applications` trains some; "
    "files NAME.encoder.safetensors in the folder that GLC_MODELS names appear here.",
    "decoder": "No style is known for this model. `scripts/run_stages.py applications` trains one; files "
    "NAME.decoder.safetensors in the folder that GLC_MODELS names appear here.",
}


def _told(action: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what goes wrong into one line on the page; no traces."""

    @wraps(action)
    def run(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except MemoryError:
            raise gr.Error("not enough memory for this image", print_exception=False) from None
        except (ValueError, OSError, RuntimeError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise gr.Error(text, title="This cannot be done", print_exception=False) from None

    return run


def _table(figures: dict[str, str]) -> str:
    first, *rest = [f"| {name} | {value} |" for name, value in figures.items()]
    return "\n".join([first, "|---|---|", *rest])


def _slider(label: str) -> gr.ImageSlider:
    return gr.ImageSlider(label=label, format=PNG, type="pil", interactive=False, max_height=640)


def _shown(label: str) -> gr.Image:
    # gradio's own choice of buttons has one that uploads the image.
    return gr.Image(label=label, format=PNG, interactive=False, buttons=["download", "fullscreen"])


def _image_file() -> gr.File:
    return gr.File(label="Image", file_count="single", type="filepath", height=120)


def _quality() -> gr.Slider:
    return gr.Slider(0, 100, 50, step=1, label="Quality")


def build(studio: Studio) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="glc", delete_cache=(3600, 3600), analytics_enabled=False) as page:
        gr.Markdown("# glc\nGenerative Latent Coding: photographs in a few hundred bytes.")
        model = gr.Dropdown(list(studio.models), value=studio.first, label="Model", interactive=True)
        with gr.Tab("Compress"):
            _compress_tab(studio, model)
        with gr.Tab("Open a file"):
            _open_tab(studio)
        with gr.Tab("Restore"):
            _restore_tab(studio, model)
        with gr.Tab("Fill holes"):
            _inpaint_tab(studio, model)
        with gr.Tab("Style"):
            _style_tab(studio, model)
    return page


def _on(trigger: Any, action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    trigger(_told(action), inputs, outputs, api_visibility="private", show_progress="full")


def _compress_tab(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            mode = gr.Radio(["quality", "bytes"], value="quality", label="Choose by")
            quality = _quality()
            target = gr.Number(1000, label="Bytes at most", precision=0, minimum=1, visible=False)
            go = gr.Button("Compress", variant="primary")
            figures = gr.Markdown()
            result = gr.File(label="The .glc file", interactive=False)
        with gr.Column(scale=3):
            slider = _slider("Original and reconstruction")
            coarse = _shown("What the hyper code alone carries")

    def show(mode: str) -> Any:
        return gr.update(visible=mode == "quality"), gr.update(visible=mode != "quality")

    def run(path: str | None, name: str, mode: str, quality: float, target: float | None) -> Any:
        if mode == "bytes" and not target:
            raise ValueError("say how many bytes the file may have")
        coded = studio.compress(path, name, quality, int(target or 0) if mode == "bytes" else None)
        text = _table(coded.figures) + (f"\n\n{coded.note}" if coded.note else "")
        return (coded.original, coded.image), coded.coarse, text, str(coded.file)

    mode.change(show, [mode], [quality, target], api_visibility="private")
    inputs, outputs = [file, model, mode, quality, target], [slider, coarse, figures, result]
    _on(file.upload, run, inputs, outputs)
    _on(go.click, run, inputs, outputs)


def _open_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="A .glc file", file_count="single", type="filepath", height=120)
            figures = gr.Markdown()
        with gr.Column(scale=3):
            image = _shown("Image")

    def run(path: str | None) -> Any:
        found, told = studio.open(path)
        return found, _table(told)

    _on(file.upload, run, [file], [image, figures])


def _choice(studio: Studio, model: gr.Dropdown, kind: str, wanted: str = "") -> gr.Dropdown:
    """Return a choice among a model's parts, which follows the model, with a hint where there is none."""

    def choices(name: str) -> list[str]:
        found = studio.parts(name, kind)
        return sorted(found, key=lambda part: (wanted not in part, part))

    def follow(name: str) -> Any:
        found = choices(name)
        chosen = found[0] if found else None
        return gr.update(choices=found, value=chosen), gr.update(visible=not found)

    found = choices(studio.first)
    choice = gr.Dropdown(found, value=found[0] if found else None, label=kind.capitalize(), interactive=True)
    hint = gr.Markdown(_HINTS[kind], visible=not found)
    model.change(_told(follow), [model], [choice, hint], api_visibility="private")
    return choice


def _need(part: str | None, kind: str) -> str:
    if not part:
        raise ValueError(_HINTS[kind].replace("`", ""))
    return part


def _both(ours: Coded, plain: Coded, name: str) -> str:
    lines = [f"| {name} | {ours.figures['file']} |", f"| {OWN} | {plain.figures['file']} |"]
    return "| encoder | file |\n|---|---|\n" + "\n".join(lines)


def _restore_tab(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            encoder = _choice(studio, model, "encoder", "denoise")
            quality = _quality()
            go = gr.Button("Restore", variant="primary")
            figures = gr.Markdown()
            result = gr.File(label="The .glc file: an ordinary one", interactive=False)
        with gr.Column(scale=3):
            given = _slider("Given and restored")
            compared = _slider("The model's own encoder, and restored")

    def run(path: str | None, name: str, part: str | None, quality: float) -> Any:
        part = _need(part, "encoder")
        ours, plain = studio.restore(path, name, part, quality)
        pairs = (ours.original, ours.image), (plain.image, ours.image)
        return (*pairs, _both(ours, plain, part), str(ours.file))

    _on(go.click, run, [file, model, encoder, quality], [given, compared, figures, result])


def _inpaint_tab(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            encoder = _choice(studio, model, "encoder", "inpaint")
            quality = _quality()
            go = gr.Button("Fill", variant="primary")
            figures = gr.Markdown()
            result = gr.File(label="The .glc file: an ordinary one", interactive=False)
        with gr.Column(scale=3):
            # Without sources of its own: it says nothing of files that are bad or too large.
            editor = gr.ImageEditor(
                label="Paint over what is to be replaced",
                type="numpy",
                format=PNG,
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=["#808080"], color_mode="fixed"),
            )
            slider = _slider("With holes and filled")

    def show(path: str | None) -> Any:
        return {"background": np.asarray(studio.canvas(path)), "layers": [], "composite": None}

    def run(
        path: str | None, value: dict[str, Any] | None, name: str, part: str | None, quality: float
    ) -> Any:
        part = _need(part, "encoder")
        holed, coded = studio.inpaint(path, _painted(value), name, part, quality)
        return (holed, coded.image), _table(coded.figures), str(coded.file)

    _on(file.upload, show, [file], [editor])
    _on(go.click, run, [file, editor, model, encoder, quality], [slider, figures, result])


def _painted(value: dict[str, Any] | None) -> np.ndarray | None:
    """Return the mask `[H, W]` in what the editor gives: layers `[H, W, 4]`."""
    layers = [layer[..., 3] > 0 for layer in (value or {}).get("layers") or [] if layer.shape[-1] == 4]
    return np.any(layers, axis=0) if layers else None


def _style_tab(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            decoder = _choice(studio, model, "decoder")
            quality = gr.Slider(0, 100, 100, step=1, label="Quality")
            go = gr.Button("Draw", variant="primary")
            figures = gr.Markdown()
            result = gr.File(label="The .glc file: the same for any decoder", interactive=False)
        with gr.Column(scale=3):
            slider = _slider("The model's own decoder, and the style")

    def run(path: str | None, name: str, part: str | None, quality: float) -> Any:
        coded, styled = studio.stylize(path, name, _need(part, "decoder"), quality)
        figures = {key: coded.figures[key] for key in ("size", "file", "bits per pixel")}
        return (coded.image, styled), _table(figures), str(coded.file)

    _on(go.click, run, [file, model, decoder, quality], [slider, figures, result])


def launch(studio: Studio, host: str = "127.0.0.1", port: int = 7860) -> tuple[gr.Blocks, str]:
    """Start serving in the background; return the page and its address.

    Args:
        studio: models and limits.
        host: address to listen on.
        port: a free one.

    Raises:
        OSError: when the port is taken.
    """
    page = build(studio)
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        show_error=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=studio.max_bytes,
        theme=gr.themes.Base(**fonts),
    )
    return page, url
