"""The user interface in gradio. It contacts no other machine: no fonts, analytics or share links."""

import os
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

# Read when gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GLC_OFFLINE", "1")

import gradio as gr
import numpy as np
from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from glc.app.guard import Guard
from glc.app.service import OWN, Coded, Service

PNG = "png"
"""Format of displayed images: lossless, so that only the codec's loss is visible."""
_HINTS = {
    "encoder": "No encoder found for this model. Train one with `scripts/run_stages.py applications`, and "
    "put NAME.encoder.safetensors into the folder that GLC_MODELS names.",
    "decoder": "No style found for this model. Train one with `scripts/run_stages.py applications`, and put "
    "NAME.decoder.safetensors into the folder that GLC_MODELS names.",
}


def _reporting(action: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error as one line on the page, without a trace."""

    @wraps(action)
    def run(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except MemoryError:
            raise gr.Error("out of memory; use a smaller image", print_exception=False) from None
        except (ValueError, OSError, RuntimeError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise gr.Error(text, title="Error", print_exception=False) from None

    return run


def _table(metrics: dict[str, str]) -> str:
    first, *rest = [f"| {name} | {value} |" for name, value in metrics.items()]
    return "\n".join([first, "|---|---|", *rest])


def _noted(metrics: dict[str, str], coded: Coded) -> str:
    return _table(metrics) + (f"\n\n{coded.note}" if coded.note else "")


def _slider(label: str) -> gr.ImageSlider:
    return gr.ImageSlider(label=label, format=PNG, type="pil", interactive=False, max_height=640)


def _shown(label: str) -> gr.Image:
    # gradio's default buttons include one that uploads the image.
    return gr.Image(label=label, format=PNG, interactive=False, buttons=["download", "fullscreen"])


def _wanted() -> gr.Checkbox:
    return gr.Checkbox(label="Map what the file does not determine (slower)", value=False)


def _uncertain() -> gr.Image:
    image = _shown("Bright: not determined by the file, made up by the decoder")
    image.visible = False
    return image


def _image_file() -> gr.File:
    return gr.File(label="Image", file_count="single", type="filepath", height=120)


def _quality() -> gr.Slider:
    return gr.Slider(0, 100, 50, step=1, label="Quality")


class _DecoderPage(StaticFiles):
    """Files of the page that decodes in the browser."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, with the headers by which a browser lets ONNX Runtime use threads."""
        response = await super().get_response(path, scope)
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
        return response


def build(service: Service, has_decoder: bool = False) -> gr.Blocks:
    """Return the page, with a link to the one that decodes in the browser if there is one."""
    title = "# glc\nGenerative Latent Coding: photographs in a few hundred bytes."
    if has_decoder:
        text = f"Decode files of {service.first} in this browser, offline"
        title += f' <a href="decoder/" target="_blank">{text}</a>.'
    with gr.Blocks(title="glc", analytics_enabled=False) as page:
        gr.Markdown(title)
        model = gr.Dropdown(list(service.models), value=service.first, label="Model", interactive=True)
        with gr.Tab("Compress"):
            _compress_tab(service, model)
        with gr.Tab("Open a file"):
            _open_tab(service)
        with gr.Tab("Restore"):
            _restore_tab(service, model)
        with gr.Tab("Fill holes"):
            _inpaint_tab(service, model)
        with gr.Tab("Style"):
            _style_tab(service, model)
    return page


def _on(trigger: Any, action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    trigger(_reporting(action), inputs, outputs, api_visibility="private", show_progress="full")


def _compress_tab(service: Service, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            mode = gr.Radio(["quality", "bytes"], value="quality", label="Target")
            quality = _quality()
            target = gr.Number(1000, label="Maximum bytes", precision=0, minimum=1, visible=False)
            wanted = _wanted()
            go = gr.Button("Compress", variant="primary")
            metrics = gr.Markdown()
            result = gr.File(label="The .glc file", interactive=False)
        with gr.Column(scale=3):
            slider = _slider("Original and reconstruction")
            uncertain = _uncertain()
            coarse = _shown("Decoded from the hyper-latent alone")

    def show(mode: str) -> Any:
        return gr.update(visible=mode == "quality"), gr.update(visible=mode != "quality")

    def run(
        path: str | None, name: str, mode: str, quality: float, target: float | None, wanted: bool
    ) -> Any:
        if mode == "bytes" and not target:
            raise ValueError("Maximum bytes: no value; give a number of bytes")
        size = int(target or 0) if mode == "bytes" else None
        coded = service.compress(path, name, quality, size, uncertainty=wanted)
        shown = gr.update(value=coded.uncertain, visible=wanted)
        pair = (coded.original, coded.image)
        return pair, shown, coded.coarse, _noted(coded.metrics, coded), str(coded.file)

    mode.change(show, [mode], [quality, target], api_visibility="private")
    inputs = [file, model, mode, quality, target, wanted]
    outputs = [slider, uncertain, coarse, metrics, result]
    _on(file.upload, run, inputs, outputs)
    _on(go.click, run, inputs, outputs)


def _open_tab(service: Service) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="A .glc file", file_count="single", type="filepath", height=120)
            wanted = _wanted()
            metrics = gr.Markdown()
        with gr.Column(scale=3):
            image = _shown("Image")
            uncertain = _uncertain()

    def run(path: str | None, wanted: bool) -> Any:
        found, metrics, made_up = service.open(path, wanted)
        return found, gr.update(value=made_up, visible=wanted), _table(metrics)

    for trigger in (file.upload, wanted.change):
        _on(trigger, run, [file, wanted], [image, uncertain, metrics])


def _choice(service: Service, model: gr.Dropdown, kind: str, wanted: str = "") -> gr.Dropdown:
    """Return a dropdown of a model's variants that follows the model, with a hint if there are none."""

    def choices(name: str) -> list[str]:
        found = service.variants(name, kind)
        return sorted(found, key=lambda variant: (wanted not in variant, variant))

    def follow(name: str) -> Any:
        found = choices(name)
        chosen = found[0] if found else None
        return gr.update(choices=found, value=chosen), gr.update(visible=not found)

    found = choices(service.first)
    choice = gr.Dropdown(found, value=found[0] if found else None, label=kind.capitalize(), interactive=True)
    hint = gr.Markdown(_HINTS[kind], visible=not found)
    model.change(_reporting(follow), [model], [choice, hint], api_visibility="private")
    return choice


def _need(variant: str | None, kind: str) -> str:
    if not variant:
        raise ValueError(_HINTS[kind].replace("`", ""))
    return variant


def _both(ours: Coded, plain: Coded, name: str) -> str:
    lines = [f"| {name} | {ours.metrics['file']} |", f"| {OWN} | {plain.metrics['file']} |"]
    return "| encoder | file |\n|---|---|\n" + "\n".join(lines) + (f"\n\n{ours.note}" if ours.note else "")


def _restore_tab(service: Service, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            encoder = _choice(service, model, "encoder", "denoise")
            quality = _quality()
            go = gr.Button("Restore", variant="primary")
            metrics = gr.Markdown()
            result = gr.File(label="The .glc file, for any decoder", interactive=False)
        with gr.Column(scale=3):
            given = _slider("Input and restored")
            compared = _slider("The model's own encoder and restored")

    def run(path: str | None, name: str, variant: str | None, quality: float) -> Any:
        variant = _need(variant, "encoder")
        ours, plain = service.restore(path, name, variant, quality)
        pairs = (ours.original, ours.image), (plain.image, ours.image)
        return (*pairs, _both(ours, plain, variant), str(ours.file))

    _on(go.click, run, [file, model, encoder, quality], [given, compared, metrics, result])


def _inpaint_tab(service: Service, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            encoder = _choice(service, model, "encoder", "inpaint")
            quality = _quality()
            go = gr.Button("Fill", variant="primary")
            metrics = gr.Markdown()
            result = gr.File(label="The .glc file, for any decoder", interactive=False)
        with gr.Column(scale=3):
            # No upload in the editor: it does not report files that are corrupt or too large.
            editor = gr.ImageEditor(
                label="Paint over the area to replace",
                type="numpy",
                format=PNG,
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=["#808080"], color_mode="fixed"),
            )
            slider = _slider("With holes and filled")

    def show(path: str | None) -> Any:
        return {"background": np.asarray(service.canvas(path)), "layers": [], "composite": None}

    def run(
        path: str | None, value: dict[str, Any] | None, name: str, variant: str | None, quality: float
    ) -> Any:
        variant = _need(variant, "encoder")
        holed, coded = service.inpaint(path, _painted(value), name, variant, quality)
        return (holed, coded.image), _noted(coded.metrics, coded), str(coded.file)

    _on(file.upload, show, [file], [editor])
    _on(go.click, run, [file, editor, model, encoder, quality], [slider, metrics, result])


def _painted(value: dict[str, Any] | None) -> np.ndarray | None:
    """Return the mask `[H, W]` of the editor's layers `[H, W, 4]`."""
    layers = [layer[..., 3] > 0 for layer in (value or {}).get("layers") or [] if layer.shape[-1] == 4]
    return np.any(layers, axis=0) if layers else None


def _style_tab(service: Service, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = _image_file()
            decoder = _choice(service, model, "decoder")
            quality = gr.Slider(0, 100, 100, step=1, label="Quality")
            go = gr.Button("Render", variant="primary")
            metrics = gr.Markdown()
            result = gr.File(label="The .glc file, for any decoder", interactive=False)
        with gr.Column(scale=3):
            slider = _slider("The model's own decoder and the style")

    def run(path: str | None, name: str, variant: str | None, quality: float) -> Any:
        coded, styled = service.stylize(path, name, _need(variant, "decoder"), quality)
        metrics = {key: coded.metrics[key] for key in ("size", "file", "bits per pixel")}
        return (coded.image, styled), _noted(metrics, coded), str(coded.file)

    _on(go.click, run, [file, model, decoder, quality], [slider, metrics, result])


async def _refuse(url: str) -> Any:
    """Take the place of gradio's download of an input that is a URL."""
    raise ValueError(f"{url}: this server fetches nothing; upload the file")


def launch(
    service: Service, host: str = "127.0.0.1", port: int = 7860, allowed_hosts: Collection[str] = ()
) -> tuple[gr.Blocks, str]:
    """Start serving in the background; return the page and its address.

    Args:
        allowed_hosts: names besides `host`, localhost and addresses by which browsers may call the server.

    Raises:
        OSError: the port is in use.
    """
    folder = service.decoder_page()
    processing_utils.async_ssrf_protected_get = _refuse
    os.environ["GRADIO_TEMP_DIR"] = str(service.folder.path)
    hosts = (host, *allowed_hosts)
    guard = Middleware(Guard, folder=service.folder, max_bytes=service.max_bytes, hosts=hosts)
    page = build(service, folder is not None)
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    app, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        show_error=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=service.max_bytes,
        app_kwargs={"middleware": [guard]},
        theme=gr.themes.Base(**fonts),
    )
    if folder is not None:
        # Before gradio's own routes, which match every path.
        app.router.routes.insert(0, Mount("/decoder", _DecoderPage(directory=folder, html=True)))
    return page, url
