"""What the command line says, and where."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

WIDE = 140  # columns of a file, and of wide tables anywhere
OUT, ERR = Console(), Console(stderr=True)
if not OUT.is_terminal and "COLUMNS" not in os.environ:
    OUT.width = WIDE


def set_up_log(level: int) -> None:
    """Log to standard error: in colour to a terminal, else one line for each record."""
    if ERR.is_terminal:
        handler = RichHandler(console=ERR, show_path=False)
        logging.basicConfig(level=level, format="%(message)s", datefmt="[%X]", handlers=[handler])
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")


def complain(reason: object) -> None:
    """Say on standard error what is wrong."""
    ERR.print("[bold red]error:[/]", Text(str(reason)), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bar(text: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as progress:
        task = progress.add_task(text, total=total)

        def advance(steps: int = 1, what: str = text, of: int | None = None) -> None:
            progress.update(task, advance=steps, description=what)
            if of is not None:
                progress.update(task, total=of)

        yield advance
