"""A stock pipeline as something that can be left and entered again: each picture's call runs in a greenlet.

The pipeline is the library's own, from the first line to the last. Where it calls a module that several pictures can
share (the text encoders, the UNet, a ControlNet, the VAE's decoder), its greenlet stops, and the call waits in a lane
until the worker runs that lane; the lane computes all waiting calls in one forward and lets each greenlet go on with
its own rows. So all else (timesteps, schedulers, guidance, masks) needs no second implementation and is equal to stock
by construction. One device thread runs all greenlets, one at a time.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from instructors.task import Lane

_begun = 0  # streams that have begun and are not done


class Beginning(Lane):
    """The lane of pictures that have not begun: what shares nothing may take long, and they do not wait behind it."""

    rows_max = rows_min = 1

    def step(self, units: Sequence["Stream"]) -> None:
        for unit in units:
            unit.step()


BEGINNING = Beginning()


class Stream:
    """One picture on its way: a `Unit` whose work is a function that may stop in `wait`."""

    away = False

    def __init__(self, run: Callable[[], Any], mix: Any = ()) -> None:
        """`run` begins with the first `step`. `mix`: the LoRAs of its rows, as `lanes.SharedForward` takes them."""
        self.lane: Lane | None = BEGINNING
        self.rows = 1
        self.done = False
        self.value: Any = None  # what `run` returned
        self.error: BaseException | None = None
        self.call: Any = None  # what it waits for in its lane
        self.mix = mix
        self._greenlet = _Greenlet(partial(_counted, run))
        self._greenlet.stream = self
        self._greenlet.gr_context = copy_context()  # so that what it logs names its job

    def step(self) -> None:
        """Go on to where it next waits."""
        self._enter(self._greenlet.switch)

    def resume(self, value: Any) -> None:
        """Go on with the answer to its call."""
        self._enter(self._greenlet.switch, value)

    def throw(self, error: BaseException) -> None:
        """Go on with an error in place of an answer."""
        self._enter(self._greenlet.throw, error)

    def close(self) -> None:
        """Leave it, and let go of all it held."""
        if self._greenlet:
            self._enter(self._greenlet.throw, GreenletExit())
        self.done = True
        self.value = self.error = None  # an error's traceback holds tensors, and this

    def _enter(self, switch: Callable[..., Any], *values: Any) -> None:
        self.call = self.lane = None
        self.rows = 1
        try:
            # Gradients are switched per thread: without this, the end of one picture's no_grad would be all others'.
            with torch.no_grad():
                value = switch(*values)
        except BaseException as error:
            self.error = error
        else:
            self.value = value
        self.done = self._greenlet.dead


class _Greenlet(greenlet):
    stream: Stream


def _counted(run: Callable[[], Any]) -> Any:
    global _begun
    _begun += 1
    try:
        return run()
    finally:
        _begun -= 1


def current() -> Stream | None:
    """The stream that runs now; None outside of all."""
    running = getcurrent()
    return running.stream if isinstance(running, _Greenlet) else None


def alone() -> bool:
    """Is the current stream the only one that has begun?"""
    return _begun == 1


def wait(lane: Lane | None, rows: int, call: Any) -> Any:
    """Stop the current stream until its lane has the answer to `call`; without a lane, until its next step."""
    running = getcurrent()
    assert isinstance(running, _Greenlet)
    assert running.parent is not None
    running.stream.lane, running.stream.rows, running.stream.call = lane, rows, call
    return running.parent.switch()
