"""Work in a thread of its own, beside what its caller does until it needs the result."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def beside(work: Callable[[], Result]) -> Callable[[], Result]:
    """Begin `work` now, in a copy of this context.

    It pays where the work is native code that lets Python go on, such as loading a graph or hashing a file.

    Returns:
        What waits for the end of the work and then returns what it returned, or raises what it raised.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.append(context.run(work))
        except BaseException as error:  # whoever waits for it raises it
            errors.append(error)

    thread = threading.Thread(target=run, name="prunella-beside")
    thread.start()

    def wait() -> Result:
        thread.join()
        if errors:
            raise errors[0]
        return outcome[0]

    return wait
