"""The web app of `glc serve`; only `glc.app.page` needs gradio."""
