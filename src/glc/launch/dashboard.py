"""A saved workspace and a report of W&B for the runs of a project, made with wandb-workspaces.

The panels name keys that the stages log; `tests/launch/test_dashboard.py` compares them with what runs of all
stages logged.
"""

import json
from dataclasses import dataclass
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

from glc.launch.config import UsageError
from glc.training.loggers import STEP

NAME = "glc"
"""Name of the workspace, by which it is found again."""
TITLE = "Generative latent coding"
"""Title of the report."""
QUALITY = {"psnr": "PSNR (dB)", "ms_ssim": "MS-SSIM", "lpips_alex": "LPIPS (AlexNet)"}
"""Metrics that are plotted over the rate."""
SWEPT: tuple[Any, ...] = (
    *(wr.Config(key) for key in ("stage.lmbda", "stage.optimizer.lr", "stage.distortion_weights.code_ce")),
    *(wr.SummaryMetric(f"val/{key}") for key in ("bpp", *QUALITY)),
)
"""Settings that are often swept, and results."""
COLUMNS = (
    *("config:stage.value.name", "config:model.value.name", "config:stage.value.lmbda", "config:seed.value"),
    *(
        "summary:val/loss.min",
        "summary:val/bpp",
        "summary:val/psnr",
        "summary:val/ms_ssim",
        "summary:val/lpips_alex",
    ),
    *("summary:val/hyper_codebook_perplexity", "summary:train/images_per_second.mean"),
)
"""Columns of the table of runs, from the left."""


@dataclass(frozen=True)
class Lines:
    """A chart of keys over the steps, a line per run and key."""

    title: str
    keys: tuple[str, ...]
    log: bool = False

    def panel(self) -> Any:
        """Return the panel."""
        return wr.LinePlot(title=self.title, x=STEP, y=list(self.keys), log_y=self.log or None)


@dataclass(frozen=True)
class Points:
    """A chart with a point per run: the last value of one key over that of another."""

    title: str
    x: str
    y: str

    def panel(self) -> Any:
        """Return the panel."""
        return wr.ScatterPlot(
            title=self.title,
            x=wr.SummaryMetric(self.x),
            y=wr.SummaryMetric(self.y),
        )


@dataclass(frozen=True)
class Curves:
    """A chart of two columns of a table, a line per run."""

    title: str
    table: str
    x: str
    y: str

    def panel(self) -> Any:
        """Return the panel."""
        return wr.CustomChart(
            # id and name without a value, as in charts that runs log; wandb-workspaces would add a wrong one.
            query={"id": None, "name": None, "summaryTable": {"tableKey": self.table}},
            chart_name="wandb/line/v0",
            chart_fields={"x": self.x, "y": self.y},
            chart_strings={"title": self.title},
        )


@dataclass(frozen=True)
class Images:
    """Images of runs, with a slider over the steps."""

    title: str
    keys: tuple[str, ...]

    def panel(self) -> Any:
        """Return the panel."""
        return wr.MediaBrowser(title=self.title, media_keys=list(self.keys), num_columns=1)


@dataclass(frozen=True)
class Table:
    """A table that runs logged."""

    key: str

    def panel(self) -> Any:
        """Return the panel."""
        return wr.WeavePanelSummaryTable(table_name=self.key)


@dataclass(frozen=True)
class Across:
    """Parallel coordinates: settings and last values, a line per run."""

    title: str
    columns: tuple[Any, ...]
    """`wr.Config` and `wr.SummaryMetric`."""

    def panel(self) -> Any:
        """Return the panel."""
        columns = [wr.ParallelCoordinatesPlotColumn(metric=column) for column in self.columns]
        return wr.ParallelCoordinatesPlot(title=self.title, columns=columns)


Panel = Lines | Points | Curves | Images | Table | Across


@dataclass(frozen=True)
class Section:
    """A section of the workspace."""

    name: str
    stages: tuple[str, ...]
    """The stages that log what its panels show."""
    panels: tuple[Panel, ...]
    is_open: bool = True


def _both(name: str) -> tuple[str, ...]:
    return f"train/{name}", f"val/{name}"


def _codebook(name: str) -> tuple[Panel, ...]:
    return (
        Lines("Perplexity: codewords in use, in effect", _both(f"{name}_perplexity")),
        Lines("Codewords used", _both(f"{name}_count")),
        Lines("Uses of each codeword, most frequent first", (f"val/{name}_histogram",)),
    )


def _optimisation(*networks: str) -> tuple[Panel, ...]:
    second = ("lr-AdamW-1",) if "discriminator" in networks else ()
    return (
        Lines(
            "Norm of the gradient per network",
            tuple(f"train/grad_norm/{name}" for name in networks),
            log=True,
        ),
        Lines(
            "Norm of the weights per network",
            tuple(f"train/weight_norm/{name}" for name in networks),
            log=True,
        ),
        Lines("Norm of the gradient before clipping", ("train/grad_norm",), log=True),
        Lines("Learning rate", ("lr-AdamW", *second)),
        Lines("Images per second", ("train/images_per_second",)),
    )


_DISCRIMINATOR = (
    Lines("Logits of real and decoded images", ("train/logits_real", "train/logits_fake")),
    Lines("Weight of the adversarial term", ("train/adversarial_weight",)),
    Lines("Loss of the discriminator", ("train/discriminator",)),
    Lines("Gradient norm of the discriminator", ("train/grad_norm_discriminator",), log=True),
)

SECTIONS = (
    Section(
        "Rate and distortion",
        ("transform", "joint"),
        (
            *(
                Curves(f"{label} over bits per pixel", "rd/points", "bpp", key)
                for key, label in QUALITY.items()
            ),
            *(Points(f"Mean {label} of each run", "val/bpp", f"val/{key}") for key, label in QUALITY.items()),
            Lines("Bits per pixel: estimate, files", ("val/bpp", "val/file_bpp")),
            Table("rd/points"),
        ),
    ),
    Section(
        "Reconstructions",
        ("vqvae", "transform", "joint"),
        (Images("Original, then its reconstructions", ("val/panel",)),),
    ),
    Section(
        "Stage I: vqvae",
        ("vqvae",),
        (
            Lines("Loss", ("train/loss", "val/loss")),
            Lines("L1", _both("l1")),
            Lines("LPIPS", _both("lpips")),
            Lines("Codebook term", _both("codebook"), log=True),
            Lines("PSNR (dB)", ("val/psnr",)),
            *_codebook("codebook"),
            *_DISCRIMINATOR,
        ),
    ),
    Section(
        "Stage II: transform",
        ("transform",),
        (
            Lines("Loss", ("train/loss", "val/loss")),
            Lines("Rate of y and of z (bits per latent position)", ("train/rate_y", "train/rate_z")),
            Lines("Error of the latent", ("train/latent_mse", "val/latent_mse"), log=True),
            Lines("Cross-entropy of predicted codewords", ("train/code_ce", "val/code_ce")),
            Lines("Codebook term", _both("codebook"), log=True),
            *_codebook("hyper_codebook"),
        ),
    ),
    Section(
        "Stage III: joint",
        ("joint",),
        (
            Lines("Loss", ("train/loss", "val/loss")),
            Lines("Rate of y and of z (bits per latent position)", ("train/rate_y", "train/rate_z")),
            Lines("L1", _both("l1")),
            Lines("LPIPS", _both("lpips")),
            Lines("Error of the latent", _both("latent_mse"), log=True),
            *_codebook("hyper_codebook"),
            *_DISCRIMINATOR,
        ),
    ),
    Section(
        "Optimisation, stage I",
        ("vqvae",),
        _optimisation("encoder", "decoder", "quantizer", "discriminator"),
        is_open=False,
    ),
    Section("Optimisation, stage II", ("transform",), _optimisation("coder", "predictor"), is_open=False),
    Section(
        "Optimisation, stage III",
        ("joint",),
        _optimisation("encoder", "decoder", "coder", "predictor", "discriminator"),
        is_open=False,
    ),
    Section(
        "Sweep",
        ("transform", "joint"),
        (Table("sweep/settings"), Across("Settings and results", SWEPT)),
        is_open=False,
    ),
)


def workspace(entity: str, project: str) -> ws.Workspace:
    """Return the workspace of a project; nothing is sent."""
    sections = [
        ws.Section(
            name=section.name, panels=[panel.panel() for panel in section.panels], is_open=section.is_open
        )
        for section in SECTIONS
    ]
    sections[-1].panels += [
        wr.ParameterImportancePlot(with_respect_to="val/loss"),
        wr.RunComparer(diff_only="split"),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=20),
        runset_settings=ws.RunsetSettings(pinned_columns=list(COLUMNS)),
    )


def report(entity: str, project: str) -> wr.Report:
    """Return the template of a report on a project; nothing is sent."""

    def grid(name: str, *stages: str) -> wr.PanelGrid:
        (section,) = (section for section in SECTIONS if section.name == name)
        # Without a project it is that of the report; with one, the server is asked for the project's id.
        jobs = ", ".join(f"'{stage}'" for stage in stages or section.stages)
        runs = wr.Runset(name=", ".join(stages or section.stages), filters=f"Metric('JobType') in [{jobs}]")
        runs.pinned_columns = list(COLUMNS)
        return wr.PanelGrid(runsets=[runs], panels=[panel.panel() for panel in section.panels])

    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="What was trained, how good it is at which rate, and with which settings.",
        blocks=[
            wr.H1("What"),
            wr.P("The question, the data, and what was changed from run to run."),
            wr.H1("Result"),
            wr.P("The table of the runs is below the charts; the rate is that of validation crops."),
            grid("Rate and distortion"),
            wr.H1("Reconstructions"),
            grid("Reconstructions", "transform", "joint"),
            wr.H1("Training"),
            *(grid(section.name) for section in SECTIONS if section.name.startswith("Stage")),
            wr.H1("Settings"),
            wr.P("The settings in which the runs differ."),
            grid("Sweep"),
        ],
    )


def specification(entity: str, project: str) -> dict[str, Any]:
    """Return what would be sent: the specifications of the workspace and of the report."""
    made: dict[str, Any] = {"workspace": workspace(entity, project), "report": report(entity, project)}
    return {
        name: json.loads(item._to_model().model_dump_json(by_alias=True, exclude_none=True))
        for name, item in made.items()
    }


def save(entity: str, project: str) -> None:
    """Make the workspace or replace it, and make the report if the project has none of its title.

    The client prints the addresses of both.

    Raises:
        UsageError: the server cannot be reached, the user is not logged in, or the project does not exist.
    """
    try:
        api = wandb.Api()
        made = workspace(entity, project)
        made._internal_name = internal._url_query_str_to_internal_name(NAME)
        found = _existing(entity, project)
        made._internal_id = found or ""
        made.save()
        if all(old.display_name != TITLE for old in api.reports(f"{entity}/{project}")):
            report(entity, project).save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise UsageError(f"{entity}/{project}: {' '.join(str(error).split())}") from error


def _existing(entity: str, project: str) -> str | None:
    """Return the server's id of the workspace that an earlier call made."""
    try:
        return internal.View.from_name(entity, project, NAME).id
    except ValueError as error:
        if "Workspace" in str(error):
            return None
        raise
