"""A Hydra sweeper that searches with Optuna.

Hydra finds sweepers only in the namespace package `hydra_plugins`, and imports them whenever it starts: so
this module imports Optuna when a search starts. The published plugin, hydra-optuna-sweeper 1.3, needs
Optuna 2, whose storages do not work with SQLAlchemy 2, and numbers the trials of each command from 0.
"""

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(Sweeper):
    """Search for the parameters with the best objective: the value that the task returns.

    Trial N runs in the folder `trial-N`. A trial that fails, or whose objective is missing or not finite, is
    recorded as failed, and the search continues. A command adds `n_trials` trials to the study. With
    `resume=auto` it finishes the search of a command that was stopped: its unfinished trials, then new ones
    up to `n_trials` in total.

    Args:
        sampler: configuration of one of `optuna.samplers`.
        seed: of the sampler.
        direction: `minimize` or `maximize`.
        storage: URL of the study's database; None: in memory.
        study_name: name of the study, which is continued if the storage has it.
        n_trials: number of trials.
        n_jobs: trials that the launcher gets at a time.
        objective: name of the objective in messages.
        params: key to search space in Hydra's grammar: `interval(a,b)`, of integers if a and b are; on a
            logarithmic scale `tag(log, interval(a,b))`; `choice(a,b)`.

    Raises:
        SystemExit: 2 if the search cannot start, 1 if a trial failed.
    """

    def __init__(
        self,
        sampler: DictConfig,
        seed: int,
        direction: str,
        storage: str | None,
        study_name: str,
        n_trials: int,
        n_jobs: int,
        objective: str,
        params: DictConfig | None = None,
    ) -> None:
        self.sampler, self.seed, self.direction = sampler, seed, direction
        self.storage, self.study_name = storage, study_name
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.objective, self.params = objective, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher (called by Hydra)."""
        self.config = config
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search (called by Hydra)."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        # The last override of a key wins: the command line can fix what the configuration searches.
        given = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(words)}
        space = {key: distribution(each) for key, each in given.items() if each.is_sweep_override()}
        fixed = [str(each.input_line) for each in given.values() if not each.is_sweep_override()]
        if not space:
            stop("nothing to search: give a range, such as stage.optimizer.lr='interval(1e-5,1e-3)'")
        study = self.open_study()
        missing = self.n_trials - (len(study.trials) if self.config.get("resume") else 0)
        trials = self.unfinished(study) + [None] * max(0, missing)
        # Another seed for each command: it must not repeat the samples of earlier ones.
        study.sampler = instantiate(self.sampler, seed=self.seed + len(study.trials))
        failed = []
        for start in range(0, len(trials), self.n_jobs):
            batch = []
            for trial in trials[start : start + self.n_jobs]:
                try:
                    batch.append(trial or study.ask(space))
                except ValueError as error:  # other choices than in earlier trials
                    stop(f"{self.study_name}: {error}; give another hydra.sweeper.study_name=")
            for trial, job in zip(batch, self.launch(batch, fixed), strict=True):
                failed += [] if self.finish(study, trial, job) else [f"trial-{trial.number}"]
        if len(failed) < len(trials):
            best = study.best_trial
            print(f"best: trial-{best.number}, {self.objective} {best.value:.6g}, {best.params}")
            found = {"best_trial": best.number, "best_value": best.value, "best_params": best.params}
            OmegaConf.save(
                OmegaConf.create({"name": "optuna", **found}), self.folder / "optimization_results.yaml"
            )
        if failed:
            stop(f"{len(failed)} of {len(trials)} trials failed: {', '.join(failed)}", code=1)

    def open_study(self) -> Any:
        """Create the study, or load the one of an earlier command."""
        if find_spec("optuna") is None:
            stop("optuna: package not installed; run pip install 'glc-codec[sweep]'")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        named = {"study_name": self.study_name, "storage": self.storage}
        self.folder.mkdir(parents=True, exist_ok=True)  # for a database in it
        try:
            study = optuna.create_study(**named, direction=self.direction, load_if_exists=True)
            if self.config.get("overwrite") and study.trials and self.storage:
                optuna.delete_study(**named)
                study = optuna.create_study(**named, direction=self.direction)
        except Exception as error:  # of Optuna, of SQLAlchemy or of a driver
            reason = str(error).splitlines()[0]
            stop(f"hydra.sweeper.storage={self.storage}, hydra.sweeper.direction={self.direction}: {reason}")
        if not study.trials and not self.config.get("overwrite") and any(self.folder.glob("trial-*")):
            stop(
                f"{self.folder}: has trials that are not in the study; choose another name=, "
                "or give overwrite=true or the hydra.sweeper.storage= of these trials"
            )
        return study

    def unfinished(self, study: Any) -> list[Any]:
        """Return the trials that a stopped command left unfinished, if the search is resumed."""
        from optuna.trial import TrialState

        resume = self.config.get("resume")
        if resume not in (None, "auto"):
            stop(f"resume={resume}: a search has new trials, too; give resume=auto")
        return study.get_trials(states=[TrialState.RUNNING]) if resume else []

    def launch(self, trials: list[Any], fixed: list[str]) -> list[JobReturn]:
        """Run trials, each in its folder."""
        jobs = [
            [
                *fixed,
                *(f"{key}={'null' if value is None else value}" for key, value in trial.params.items()),
                # Numbers are not consecutive where several commands share a study.
                f"hydra.sweep.subdir=trial-{trial.number}",
            ]
            for trial in trials
        ]
        try:
            return list(self.launcher.launch(jobs, initial_job_idx=trials[0].number))
        except BaseException:
            names = ", ".join(f"trial-{trial.number}" for trial in trials)
            print(
                f"stopped in {names}: the same command with resume=auto finishes the search", file=sys.stderr
            )
            raise

    def finish(self, study: Any, trial: Any, job: JobReturn) -> bool:
        """Record the objective of a trial; return whether it has one."""
        from optuna.trial import TrialState

        returned = job._return_value  # the property prints two lines for an error
        if isinstance(returned, Exception):
            problem = " ".join(str(returned).split())
        elif returned is None:
            problem = f"{self.objective}: not measured; validate at least once within a trial"
        elif not math.isfinite(returned):
            problem = f"{self.objective}: {returned}"
        else:
            study.tell(trial.number, returned)
            print(f"trial-{trial.number}: {self.objective} {returned:.6g}, {trial.params}", flush=True)
            return True
        study.tell(trial.number, state=TrialState.FAIL)
        print(f"trial-{trial.number} failed: {problem}", file=sys.stderr, flush=True)
        return False


def distribution(override: Override) -> Any:
    """Return Optuna's distribution of a search space in Hydra's grammar."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = override.value()
    if not isinstance(space, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_iterator(transformer=Transformer.encode)))
    low, high = space.start, space.end
    kind: Any = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    return kind(low, high, log="log" in space.tags)


def stop(message: str, code: int = 2) -> NoReturn:
    """Exit with one line."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
