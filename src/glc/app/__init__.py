"""The local page that `glc serve` opens; `glc.app.page` alone needs gradio."""
