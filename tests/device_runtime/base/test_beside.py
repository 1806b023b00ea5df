"""Work beside its caller: its result or its error comes where it is waited for, and it knows the caller's context."""

import threading
from contextvars import ContextVar

import pytest

from prunella.device_runtime.base.beside import beside


def test_it_runs_while_the_caller_goes_on():
    gone_on = threading.Event()
    wait = beside(lambda: gone_on.wait(10))
    gone_on.set()
    assert wait() is True


def test_an_error_is_raised_where_it_is_waited_for():
    wait = beside(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            wait()


def test_it_has_the_callers_context():
    asked: ContextVar[str] = ContextVar("asked", default="nobody")
    token = asked.set("me")
    wait = beside(asked.get)
    asked.reset(token)
    assert wait() == "me"
