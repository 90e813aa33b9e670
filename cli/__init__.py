"""The command line: one module per command, loaded when it is called."""

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from quadpipe import __version__
from quadpipe.cli.text import say
from quadpipe.errors import QuadpipeError

_INTERRUPTED = 130
_COMMANDS = {
    "tokenize": "Turn images into shards of quadtree mosaics.",
    "info": "Describe a dataset: contents, configuration, budgets.",
    "verify": "Check every byte of a dataset.",
    "copy": "Copy a dataset, or a part of it, to a folder or a URL.",
    "train": "Train a Quadformer on shards.",
    "eval": "Evaluate a trained model at several budgets.",
    "predict": "Classify images with a trained model.",
    "export": "Write a trained model for timm.",
    "scorers": "List the saliency scorers.",
    "show": "Draw an image or a dataset as mosaics.",
}


class _LazyGroup(click.Group):
    """Loads a command's module only to run it, so that help and errors are instant."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"quadpipe.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quadpipe")
def commands() -> None:
    """Mixed-resolution tokens for Vision Transformers, made once and shared as shards."""


def main() -> NoReturn:
    """Run the command line; errors become one message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(commands.main(prog_name="quadpipe", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _leave_interrupted()
    except QuadpipeError as error:
        say(f"quadpipe: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # click could not print it
            _leave_interrupted()
        say(f"quadpipe: {error}; check the paths given")
        sys.exit(1)
    except MemoryError:
        say("quadpipe: out of memory; use fewer --workers or smaller images")
        sys.exit(1)


def _leave_interrupted() -> NoReturn:
    say("quadpipe: interrupted; rerun the same command to continue")
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    # Not sys.exit: after an interrupt inside exec(), Python would die of the signal.
    os._exit(_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal stops the run cleanly, the second one exits at once."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, lambda *_: os._exit(_INTERRUPTED))
    say("quadpipe: stopping; interrupt once more to exit at once")
    raise KeyboardInterrupt
