#!/bin/sh
# wandb 0.31.0: `${envvar:WANDB_RUN_ID}` in the `command` of a sweep becomes the name of the variable, not the id of the run.
#
# Expected: the macro is replaced for each run that the agent starts, by the environment of that run, such as in
# `command: [python, train.py, "--out=runs/${envvar:WANDB_RUN_ID}", ${args}]`: a folder for each run.
#
# Observed: the agent expands the macros before it sets WANDB_RUN_ID for the run, and writes the result into its own copy of the command. The
# first run gets the name of the variable, all later ones as well (or, if the variable was set when the agent started, that value).
#
#   run a   --out=runs/WANDB_RUN_ID    WANDB_RUN_ID=a in the environment
#   run b   --out=runs/WANDB_RUN_ID    WANDB_RUN_ID=b in the environment
#
# Affected: every sweep whose command names a folder by the run: all runs of an agent write into the same one.
# Workaround: read WANDB_RUN_ID inside the program.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check wandb==0.31.0
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import logging
import os

from wandb import wandb_agent

logging.disable()
started = []


class Recorder:
    def __init__(self, command, env, **options):
        started.append((command[1], env["WANDB_RUN_ID"]))


wandb_agent.AgentProcess = Recorder
os.environ |= {"WANDB_SWEEP_ID": "sweep", "WANDB_DIR": os.getcwd()}
os.environ.pop("WANDB_RUN_ID", None)
agent = wandb_agent.Agent(None, None, sweep_id="sweep")
agent._sweep_command = ["train.py", "--out=runs/${envvar:WANDB_RUN_ID}", "${args}"]
for run_id in ("a", "b"):
    agent._command_run({"run_id": run_id, "program": "train.py", "args": {"lr": {"value": 0.1}}})
for word, run_id in started:
    print(f"run {run_id}   {word}    WANDB_RUN_ID={run_id} in the environment")
assert [word for word, _ in started] == ["--out=runs/WANDB_RUN_ID"] * 2, "the behaviour has changed"
PY
