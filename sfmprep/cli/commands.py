"""The command line: what can be called, and exit codes.

Exit codes: 0; 1 for a failed run; 2 for a wrong call; 3 for a result that is not worth
training on, or below what `--fail-below` asks; 130 when interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from sfmprep import __version__
from sfmprep.cli import around, stages, whole
from sfmprep.cli.options import DatasetOptions
from sfmprep.errors import ConfigError, SfmprepError, did_you_mean
from sfmprep.files import in_words
from sfmprep.interrupts import EXIT_CODE, say_stopped, watch_signals
from sfmprep.terminal import say


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    # OpenMP threads that spin while they wait made ALIKED 3 to 5 times slower on a
    # machine with other work; it must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed_streams()
    watch_signals()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # such as of `| head`
            say(f"sfmprep: error: {in_words(error)}")
        # Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _open_closed_streams() -> None:
    """Gives `>&-` a place to write to, which else the first file that is opened is."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def run(args: list[str]) -> int:
    """Runs the command line and returns its exit code, see above."""
    commands = _commands()
    if args == ["--version"]:
        print(f"sfmprep {__version__}")
        return 0
    try:
        if args and not args[0].startswith("-") and args[0] not in commands:
            raise ConfigError(
                f"no command is called {args[0]!r}.{did_you_mean(args[0], commands)}"
                " See `sfmprep --help`."
            )
        if args[:1] == ["train"]:
            from sfmprep.cli.train import main as train_main

            return train_main(args[1:])
        code = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="sfmprep",
            description="Photographs in; camera poses and a sparse cloud out.",
            args=args,
        )
    except SfmprepError as error:
        say(f"sfmprep: error: {error}")
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:  # what no stage has an answer to
        say(f"sfmprep: error: {in_words(error)}")
        return 1
    except KeyboardInterrupt:
        say_stopped()
        return EXIT_CODE
    except SystemExit as exit_:
        if exit_.code == 2:
            _hint_at_settings(args)
        return exit_.code if isinstance(exit_.code, int) else bool(exit_.code)
    return code or 0


def _commands() -> dict[str, Callable[..., Any]]:
    functions = (
        *(whole.reconstruct, whole.refine),
        *(stages.extract, stages.pairs, stages.match, stages.database, stages.map_),
        *(stages.export, stages.report, stages.status),
        *(whole.add, whole.localise, around.view, around.evaluate),
        *(around.recipes, around.settings, around.weights, around.doctor),
        *(completion, whole.demo, train),
    )
    return {function.__name__.rstrip("_"): function for function in functions}


def _hint_at_settings(args: list[str]) -> None:
    """Names the setting that an unknown option such as `--max-keypoints` is."""
    from sfmprep.config.describe import settings as all_settings

    options = {field.name for field in fields(DatasetOptions)}
    for word in args:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name in options:
            continue
        keys: dict[str, str] = {}
        for known in all_settings():
            keys.setdefault(known.key.rpartition(".")[2], known.key)
        # what is like an option is answered by tyro
        is_option = bool(difflib.get_close_matches(name, options))
        close = [] if is_option else difflib.get_close_matches(name, keys, n=1)
        for meant in (name,) if name in keys else close:
            say(
                f"--{meant.replace('_', '-')} is a setting: --set {keys[meant]}=VALUE."
                f" See `sfmprep settings {keys[meant]}`."
            )


def completion(
    shell: Annotated[
        Positional[Literal["bash", "zsh"]],
        arg(metavar="[bash|zsh]", help="Which shell it is for."),
    ] = "bash",
) -> None:
    """Print what lets a shell complete commands, options and their values."""
    with contextlib.suppress(SystemExit), redirect_stdout(io.StringIO()) as script:
        tyro.extras.subcommand_cli_from_dict(
            _commands(), prog="sfmprep", args=["--tyro-print-completion", shell]
        )
    # files where tyro knows of nothing: IMAGES and OUT
    told = script.getvalue().replace("complete -F", "complete -o default -F")
    print(told.replace('\n_tyro_sfmprep "$@"\n', '\n_tyro_sfmprep "$@" || _files\n'))


def train() -> None:
    """Train the matcher on your own captures; see `sfmprep train --help`."""
