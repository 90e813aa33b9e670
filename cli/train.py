"""`quadpipe train`: the trainer."""

import os
import sys
from typing import Any

import click

from quadpipe.cli.options import dataset_options, options_of
from quadpipe.cli.text import budgets_text, count_text, counted, duration_text, say
from quadpipe.errors import QuadpipeError
from quadpipe.model.config import TrainConfig
from quadpipe.model.evaluate import EvalResult
from quadpipe.model.progress import StepReport, TrainProgress
from quadpipe.model.train import Trainer, train


class _TerminalProgress(TrainProgress):
    """One line per interval, on standard output."""

    def started(self, trainer: Trainer) -> None:
        config, model = trainer.config, trainer.model.config
        self._epochs = config.epochs
        parameters = list(trainer.model.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        budgets, limits = trainer.loader.budgets, trainer.loader.limits
        costs = [
            count_text(model.multiply_adds(n))
            for n in dict.fromkeys(budgets[:: len(budgets) - 1 or 1])
        ]
        size = config.model or f"{model.width} x {model.depth}"
        mixture, steps = trainer.loader.mixture, counted(trainer.loader.steps(0), "step")
        views = max(dataset.split("train").views for dataset in mixture.datasets)
        lines = [
            f"model    {size}, {total:,} parameters, "
            f"{f'{trained:,} of them trained, ' if trained < total else ''}"
            f"{counted(model.classes, 'class')}, "
            f"{' to '.join(costs)} multiply-adds per image at {budgets_text(budgets)} tokens"
            + (f" on average, {limits.least} to {limits.most} of an image" if limits else ""),
            f"data     {counted(trainer.samples, 'sample')} per epoch, "
            f"{f'about {steps} of at most' if config.tokens_per_batch else f'{steps} of'} "
            f"{config.batch_size}" + (f", {views} views in turn" if views > 1 else ""),
            f"device   {trainer.device}, {counted(trainer.world.size, 'process')}",
        ]
        if len(mixture.datasets) > 1:
            whole = sum(mixture.shares)
            each = zip(mixture.datasets, mixture.sizes, mixture.shares, strict=True)
            lines += [
                f"data     {share / whole:.1%} of {dataset.folder}, which has "
                f"{counted(samples, 'sample')}"
                for dataset, samples, share in each
            ]
        if trainer.loaded:
            pixels = (",".join(f"{value:g}" for value in v) for v in (model.mean, model.std))
            lines.append(
                f"init     width {model.width}, depth {model.depth}, {model.heads} heads, "
                f"{'swiglu' if model.swiglu else model.activation}, mean {next(pixels)}, "
                f"std {next(pixels)}"
            )
            lines += [f"init     {name} {how}" for name, how in trainer.loaded.changed.items()]
            lines += [
                f"init     {name} is new"
                for name in trainer.loaded.fresh
                if name.partition(".")[0] not in trainer.loaded.changed  # which says why
            ]
        if trainer.step:
            lines.append(f"resumed  at step {trainer.step:,} of {trainer.steps:,}")
        click.echo("\n".join(lines))

    def warn(self, message: str) -> None:
        say(f"note     {message}")

    def interval(self, report: StepReport) -> None:
        click.echo(
            f"epoch {report.epoch + 1}/{self._epochs} step {report.step}/{report.steps}  "
            f"{_means(report)}  lr {report.lr:.2e}  "
            f"{report.images_per_second:,.0f} img/s  {report.tokens_per_second:,.0f} tokens/s  "
            f"{report.waiting:.1%} waiting for data, {report.copying:.1%} copying, "
            f"{report.computing:.1%} computing  "
            f"{duration_text(report.seconds_left)} left{_skipped(report.skipped)}"
        )

    def evaluated(self, epoch: int, score: EvalResult) -> None:
        each = ", ".join(f"{where} {top1:.1%}" for where, top1 in score.by_dataset.items())
        top1 = f"{score.top1:.1%} ({each})" if each else f"{score.top1:.1%}"
        click.echo(
            f"epoch {epoch}/{self._epochs} done  val top-1 {top1}  top-5 {score.top5:.1%}  "
            f"loss {score.loss:.4f}{_skipped(score.skipped)}"
        )

    def finished(self, trainer: Trainer) -> None:
        commands = [f"quadpipe eval {trainer.run} {each.folder}" for each in trainer.validated]
        click.echo("; ".join(["done", *commands]))


def _means(report: StepReport) -> str:
    if report.loss is None or report.accuracy is None:
        return "no loss"
    return f"loss {report.loss:.4f}  accuracy {report.accuracy:.1%}"


def _skipped(samples: int) -> str:
    return f"  {samples:,} damaged samples skipped" if samples else ""


@click.command("train")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET..", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--init",
    type=click.Path(),
    help="Initial weights, a local file of a timm ViT or a local run; the model is theirs.",
)
@click.option("--init-name", metavar="NAME", help="timm's name of the model in --init.")
@dataset_options
@options_of(TrainConfig)
def command(
    datasets: tuple[str, ...],
    out: str,
    resume: bool,
    init: str | None,
    init_name: str | None,
    **options: Any,
) -> None:
    """Train a Quadformer on a DATASET: a folder or any fsspec URL. Several are read as one.

    On several GPUs, or in several processes on a CPU:

    torchrun --nproc-per-node K -m quadpipe.cli train DATASET --out RUN
    """
    progress, code = _TerminalProgress(), 0
    options |= {"resume": resume, "init": init, "init_name": init_name}
    try:
        train(datasets, out, progress=progress, **options)
    except QuadpipeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        say(f"quadpipe: {error}")
        code = error.exit_code
    if "WORLD_SIZE" in os.environ:
        # All files are written. Sometimes a thread of gloo outlives its group, and a normal exit
        # then ends in an abort, which torchrun treats as a failure.
        sys.stdout.flush()
        os._exit(code)
