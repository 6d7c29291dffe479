"""The command line: `train`, `evaluate` and `enhance`; flags are the fields of dataclasses.

Exit codes: 0 good, 1 something failed, 2 wrong usage, 130 stopped (what is done is kept). With
`--json` one object goes to stdout whatever happens, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from .config import Config, DegradationConfig, option, preset
from .enhance.settings import RestoreConfig
from .files import user_path

DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of every command; `run` returns what JSON says, `failed` above 0 is a failure."""

    json: Flag = option(False, "print one JSON object to stdout, and nothing else")
    debug: Flag = option(False, "show where an error came from")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Path):
                object.__setattr__(self, name, user_path(value))


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train to --max_train_steps and export; a run that was begun, in the notebook too, goes on."""

    work_dir: Path | None = option(None, "holds data/, runs/ and results/; none: the notebook's")
    drive_dir: Path | None = option(None, "gets a copy of every save, as Drive does")
    config: Any = None

    def run(self) -> dict[str, Any]:
        from .environment import detect, prepare_packages, progress, report
        from .run import Run

        environment = detect()
        prepare_packages(environment.place)
        run = Run(self.config, environment=environment, output_dir=self.work_dir,
                  drive_dir=self.drive_dir)
        print(report(run.environment, run.config.preset, f"of run {run.config.run_name!r}"))
        bar = None
        for record in run.train():
            bar = bar or progress(total=run.config.max_train_steps, initial=record.step - 1,
                                  desc="Training", unit="step")
            bar.set_postfix(loss=f"{record.losses['total']:.3f}", refresh=False)
            bar.update()
        if bar:
            bar.close()
        if not run.group.first:
            return {}
        saved, folder = run.latest(), run.export()
        print(f"Exported step {saved.step} to {folder}")
        return {"run": run.config.run_name, "step": saved.step, "checkpoints": run.folder,
                "losses": saved.history[-1]["losses"], "export": folder}


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure a run on held-out images: metrics.json, metrics.csv and a report."""

    run_name: str = option("", "which run of the work folder; none: the newest")
    work_dir: Path | None = option(None, "as for train")
    drive_dir: Path | None = option(None, "as for train")

    def run(self) -> dict[str, Any]:
        from .environment import detect, prepare_packages, workspace
        from .run import Run
        from .training.checkpoint import NAMES, newest

        if os.environ.get("RANK", "0") != "0":
            return {}
        environment = detect()
        prepare_packages(environment.place)
        work = workspace(environment, self.work_dir)
        files = [path for name in NAMES for path in (work / "runs").glob(f"*/{name}")]
        name = self.run_name or (max(files, key=lambda path: path.stat().st_mtime).parent.name
                                 if files else "")
        saved = newest([place / "runs" / name for place in (work, self.drive_dir) if place])
        if saved is None:
            raise ValueError(f"run: expected a trained one in {work / 'runs'}, got {name or 'none'}"
                             "; train one first, or name its folder by --work_dir")
        run = Run(saved.config.replace(run_name=name), environment=environment, output_dir=work,
                  drive_dir=self.drive_dir)
        evaluation = run.evaluate()
        print(evaluation.overview().to_string())
        return {"run": name, "step": saved.step, "metrics": run.results / "metrics.json",
                "report": run.results / "report.html",
                "gains": {n: s["gain"] for n, s in evaluation.summary()["sets"].items()}}


@dataclass(frozen=True, kw_only=True)
class Enhance(Command):
    """Restore pictures, folders, patterns, videos and splats; what is done already is skipped.

    Results lie beside the inputs as <name>_restored, or in the same tree within --output_dir.
    """

    inputs: tyro.conf.Positional[tuple[str, ...]] = option(
        (), "files, folders, or patterns such as 'renders/**/*.png'")
    model: str = option("", "folder or hub name of an exported enhancer; none: the shipped one")
    output_dir: Path | None = option(None, "gets the results; none: they lie beside the inputs")
    zip: Path | None = option(None, "a .zip file that gets all results, too")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option("auto", "of the weights")
    settings: Any = None

    def run(self) -> dict[str, Any]:
        from .distributed import processes
        from .enhance.restore import find, restore_all, zip_results
        from .environment import detect
        from .model.export import load
        from .run import working_dtype

        environment, group = detect(), processes()
        inputs = find(self.inputs, self.output_dir)
        with group.one_first():
            model = load(self.model or None, device=environment.device,
                         dtype=working_dtype(self.mixed_precision, environment))
        name = self.model or "the shipped enhancer"
        print(f"{len(inputs)} to restore by {name}")
        outcomes = []
        for outcome in restore_all(model, inputs, self.settings, output=self.output_dir,
                                   share=(group.rank, group.count)):
            outcomes.append(outcome)
            repaired = [] if outcome.repaired is None else [
                f"repaired {100 * outcome.repaired:.0f} % of the picture"]
            for line in [outcome.error] if outcome.error else [*repaired, *outcome.notes]:
                print(f"{outcome.input.path}: {line}")
        if group.count > 1:
            import torch
            parts: list[Any] = [None] * group.count
            torch.distributed.all_gather_object(parts, outcomes)
            outcomes = [outcome for part in parts for outcome in part]
        if self.zip and group.first:
            zip_results(outcomes, self.zip)
        errors = {str(one.input.path): one.error for one in outcomes if one.error}
        skipped = sum(one.skipped for one in outcomes)
        counts = {"restored": len(outcomes) - skipped - len(errors), "skipped": skipped,
                  "failed": len(errors)}
        files = [file for one in outcomes for file in one.files]
        print(", ".join(f"{count} {word}" for word, count in counts.items()))
        if files:
            print(f"results: {self.output_dir or 'beside the inputs'}, such as {files[0]}")
        return {"model": name, **counts, "results": files, "errors": errors,
                "repaired": {str(one.input.path): round(one.repaired, 4) for one in outcomes
                             if one.repaired is not None}}


COMMANDS: dict[str, type[Command]] = {"train": Train, "evaluate": Evaluate, "enhance": Enhance}


class WrongUsage(Exception):
    """A command line that names nothing that can be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    prog = "splat-enhancer" if Path(sys.argv[0]).stem == "splat-enhancer" else \
        "python -m splat_enhancer"
    out, as_json, first = sys.stdout, "--json" in rest, os.environ.get("RANK", "0") == "0"
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # not every console on Windows has arrows
    if name in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [--help]\n")
        for command, kind in COMMANDS.items():
            print(f"  {command:<10}{kind.__doc__.partition(chr(10))[0]}")
        return DONE
    try:
        with redirect_stdout(sys.stderr) if as_json and first else nullcontext():
            result = parse(name, rest, f"{prog} {name}").run()
        code = FAILED if result.get("failed") else DONE
    except SystemExit:  # of --help
        return DONE
    except WrongUsage as error:
        result, code = {"error": str(error)}, WRONG_USAGE
    except KeyboardInterrupt as stop:
        result, code = {"error": str(stop) or "Stopped. What is done is kept: the same command "
                                              "goes on."}, STOPPED
    except Exception as error:
        if "--debug" in rest:
            raise
        result, code = {"error": in_words(error)}, FAILED
    if "error" in result and (first or code == FAILED):
        print(f"{prog} {name}: {'' if code == STOPPED else 'error: '}{result['error']}",
              file=sys.stderr)
    if as_json and first:
        print(json.dumps({"exit_code": code} | result, default=str), file=out)
    return code


def in_words(error: Exception) -> str:
    """An error as a sentence."""
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        names = " and ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
        return f"{names or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]}"
    if "Connection closed by peer" in str(error):  # of gloo, between launched processes
        return "another process of this run has ended, and printed why"
    if isinstance(error, ValueError | OSError | RuntimeError | ArithmeticError | ImportError):
        return str(error) or type(error).__name__
    return f"unexpected {type(error).__name__} ({error}); the same with --debug shows where"


def parse(name: str, arguments: Sequence[str], prog: str) -> Command:
    """Build a command from its flags, without importing torch unless the preset is "auto"."""
    if name not in COMMANDS:
        raise WrongUsage(f"expected a command ({', '.join(COMMANDS)}), got {name!r}")
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and \
            int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise WrongUsage("accelerate launch: expected several processes, as --num_processes says, "
                         "got one; add --multi_gpu, on CPUs too")
    arguments, wanted = list(arguments), "auto"
    for place in reversed(range(len(arguments) - 1)):
        looks_like_a_flag = re.fullmatch("-[xyz]", arguments[place + 1])  # as in `--up -z`
        if looks_like_a_flag or arguments[place] == "--preset":
            arguments[place] += "=" + arguments.pop(place + 1)
    if presets := [text for text in arguments if text.startswith("--preset")]:
        wanted = presets[-1].partition("=")[2]
        arguments = [text for text in arguments if text not in presets]
    try:
        if name == "evaluate":
            return _parse(Evaluate, arguments, prog)
        if name == "enhance":
            command = _parse(Enhance, arguments, prog, settings=RestoreConfig())
            if not command.inputs:
                raise ValueError("inputs: expected files, folders or patterns, got none")
            if command.zip and (command.zip.suffix.lower() != ".zip" or command.zip.is_dir()):
                raise ValueError(f"--zip: expected a file called .zip, got {command.zip}")
            return replace(command, settings=RestoreConfig(**vars(command.settings)))
        config = preset("demo" if wanted == "auto" else wanted)
        command = _parse(Train, arguments, prog, config=config)
        if wanted == "auto":  # looks at the machine, after all else is right
            from .environment import choose_preset, detect
            config = preset(choose_preset(wanted, detect())[0])
            command = _parse(Train, arguments, prog, config=config)
        changes = dict(vars(command.config))
        changes["degradation"] = DegradationConfig(**vars(changes["degradation"]))
        return replace(command, config=Config(**changes))
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def _parse(kind: type[Command], arguments: list[str], prog: str, **groups: Any) -> Any:
    """Let tyro parse a command; a group gives the flags that stand in place of that field."""
    options = _flags(kind(**groups), kind.__doc__)
    errors = StringIO()
    try:
        with redirect_stderr(errors):
            parsed = tyro.cli(type(options), args=arguments, prog=prog, use_underscores=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = " ".join(re.sub(r"[\u2500-\u257f]", " ", errors.getvalue()).split())  # frames
        raise WrongUsage(re.sub(r" (Argument|For full) helptext.*", "", words)) from stop
    return kind(**vars(parsed))


def _flags(settings: Any, text: str | None = None) -> Any:
    """The same values in a dataclass whose help texts tyro finds.

    What a command holds in a field of type Any, such as its config, gets no prefix.
    """
    hints, values, options = get_type_hints(type(settings), include_extras=True), {}, []
    for setting in fields(settings):
        value, kind = getattr(settings, setting.name), hints[setting.name]
        argument = tyro.conf.arg(help=setting.metadata.get("help"),
                                 metavar="PATH" if kind == Path | None else None)
        if is_dataclass(value):
            argument = tyro.conf.arg(name="" if kind is Any else None)
            value = _flags(value)
            kind = type(value)
        values[setting.name] = value
        options.append((setting.name, Annotated[kind, argument],
                        field(default_factory=lambda value=value: value)))
    shown = make_dataclass(type(settings).__name__, options, frozen=True)
    shown.__doc__ = text
    return shown(**values)
