"""Threads give way within a second and come back within a second, on any machine, however the neighbors come and go."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.base.cpu_load import CpuLoad
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads, engine_threads

STEP = 0.012  # seconds of one thread that has a core


class Machine:
    """Cores that are shared out fairly among the engine's threads and other programs that never stop. Its clock is simulated."""

    def __init__(self, cores, *, neighbors=0, counts=True, waits=True, light=False, shows_free=False):
        self.cores, self.neighbors = cores, neighbors
        self.counts, self.waits = counts, waits  # what its counters tell
        self.light = light  # others make room for the engine
        self.shows_free = (
            shows_free  # the counters do not see who is in the way: a quota, a core of their own
        )
        self.now = self.others = self.waited = 0.0

    def read(self):
        return CpuLoad(self.now, self.others if self.counts else None, self.waited if self.waits else None)

    def clock(self):
        return self.now

    def idle(self, seconds):
        self.others += 0 if self.shows_free else seconds * min(self.neighbors, self.cores)
        self.now += seconds

    def share(self, threads):
        """Of a core that each thread gets."""
        if self.light or threads + self.neighbors <= self.cores:
            return 1.0
        return self.cores / (threads + self.neighbors)

    def seconds(self, threads):
        """Of a step: shared out among the threads, which go on where all of them have a core."""
        return STEP / (1 + 0.6 * (threads - 1)) / self.share(threads) ** threads

    def step(self, threads):
        took, share = self.seconds(threads), self.share(threads)
        self.waited += threads * took * (1 - share)
        room = (
            self.cores - threads if self.light else self.cores * self.neighbors / (threads + self.neighbors)
        )
        self.others += 0 if self.shows_free else took * min(self.neighbors, room)
        self.now += took

    def best(self, most):
        return min(range(1, most + 1), key=self.seconds)


def engine(machine, most):
    return AdaptiveThreads(most, read=machine.read, clock=machine.clock, processors=machine.cores)


def decode(machine, threads, seconds, *, pause=0.001):
    """Steps for so long; the count at each, with its time."""
    end, counts = machine.now + seconds, []
    while machine.now < end:
        with threads:
            counts.append((machine.now, threads.count))
            machine.step(threads.count)
        machine.idle(pause)
    return counts


def changes(counts):
    return sum(a != b for (_, a), (_, b) in itertools.pairwise(counts))


@settings(deadline=None, max_examples=30)
@given(
    cores=st.integers(2, 8),
    neighbors=st.integers(1, 8),
    before=st.floats(0.0, 2.0),
    pause=st.sampled_from([0.0, 0.001, 0.005]),
)
def test_gives_way_within_a_second_and_comes_back_within_a_second(cores, neighbors, before, pause):
    machine = Machine(cores)
    threads = engine(machine, cores)
    assert {count for _, count in decode(machine, threads, before, pause=pause)} <= {cores}

    machine.neighbors = neighbors
    decode(machine, threads, 1.0, pause=pause)
    assert machine.seconds(threads.count) <= 1.25 * machine.seconds(machine.best(cores))
    stays = decode(machine, threads, 8.0, pause=pause)
    took = sum(machine.seconds(count) for _, count in stays)
    assert took <= 1.25 * len(stays) * machine.seconds(machine.best(cores)), "with all that was tried"

    machine.neighbors = 0
    decode(machine, threads, 1.0, pause=pause)
    assert {count for _, count in decode(machine, threads, 3.0, pause=pause)} == {cores}


@settings(deadline=None, max_examples=40)
@given(
    cores=st.integers(2, 4),
    visits=st.lists(st.tuples(st.integers(0, 4), st.floats(1.0, 4.0)), min_size=1, max_size=8),
    gaps=st.floats(0.0, 3.0),
)
def test_in_utterances_with_pauses(cores, visits, gaps):
    """Each time that neighbors come or go costs at most a second of runs; the count is always one that there is."""
    machine = Machine(cores)
    threads = engine(machine, cores)
    for machine.neighbors, seconds in visits:
        machine.idle(gaps)
        decode(machine, threads, 1.0)
        counts = [count for _, count in decode(machine, threads, seconds)]
        assert set(counts) <= set(range(1, cores + 1))
        took = sum(machine.seconds(count) for count in counts)
        assert took <= 1.5 * len(counts) * machine.seconds(machine.best(cores)), "with what was tried"


def test_short_utterances_are_enough():
    """Commands whose runs take 0.08 s each, seconds apart."""
    machine = Machine(2, neighbors=1)
    threads = engine(machine, 2)
    with threads:
        machine.step(2)
    machine.idle(5)
    for _ in range(6):
        decode(machine, threads, 0.08)
        machine.idle(3)
    assert threads.count == 1
    machine.neighbors = 0
    decode(machine, threads, 0.08)
    machine.idle(3)
    decode(machine, threads, 0.01)
    assert threads.count == 2, "the pause has shown that the core is free"


def test_gives_way_sooner_where_others_were_seen_before_it_began():
    for counts, seconds in ((True, 0.1), (False, 0.25)):
        machine = Machine(2, neighbors=1, counts=counts)
        threads = engine(machine, 2)
        machine.idle(0.3)  # it is loaded
        decode(machine, threads, 0.02)
        assert threads.count == 2
        decode(machine, threads, seconds - 0.02)
        assert threads.count == 1


def test_cores_that_look_free_and_are_not_are_tried_ever_more_rarely():
    """A quota that is used up by others, or two threads on one of `isolcpus`."""
    machine = Machine(2, neighbors=2, shows_free=True)
    threads = engine(machine, 2)
    counts = decode(machine, threads, 60.0)
    assert changes(counts) <= 2 * (4 + 60 / 8) + 1
    alone = sum(count == 1 for _, count in counts) / len(counts)
    assert alone > 0.9


def test_cores_that_look_busy_are_tried_as_they_may_make_room():
    """Work of lower weight, which the counters do not tell from other work."""
    machine = Machine(2, neighbors=2)
    threads = engine(machine, 2)
    decode(machine, threads, 3.0)
    assert threads.count == 1
    machine.light = True
    decode(machine, threads, 6.0)
    assert threads.count == 2
    assert changes(decode(machine, threads, 60.0)) == 0


def test_without_a_count_of_waiting_the_use_of_the_cores_decides():
    """macOS, Windows."""
    machine = Machine(2, waits=False)
    threads = engine(machine, 2)
    decode(machine, threads, 2.0)
    assert threads.count == 2
    machine.neighbors = 1
    decode(machine, threads, 1.0)
    assert threads.count == 1
    machine.neighbors = 0
    decode(machine, threads, 1.0)
    assert threads.count == 2


def test_where_nothing_is_told_all_threads_stay():
    machine = Machine(2, neighbors=2, counts=False, waits=False)
    threads = engine(machine, 2)
    assert {count for _, count in decode(machine, threads, 10.0)} == {2}


def test_noise_is_no_neighbor():
    """A little of everybody's time on a machine that is nearly idle."""
    machine = Machine(4)
    threads = engine(machine, 4)
    for _ in range(200):
        decode(machine, threads, 0.1)
        machine.waited += 0.015  # of 0.1 s
        machine.others += 0.01
    assert (threads.count, threads.fewest) == (4, 4)


@pytest.mark.parametrize(
    ("asked", "bundle", "most", "adapts"),
    [
        (2, 0, 2, False),
        (6, 2, 6, False),
        (None, 0, 4, True),
        (None, 2, 2, True),
        (None, 6, 4, True),  # made for a larger device
        (0, 2, 4, True),
        (None, 1, 1, False),
    ],
)
def test_a_number_that_is_asked_for_stays(monkeypatch, asked, bundle, most, adapts):
    monkeypatch.setattr("prunella.device_runtime.engines.adaptive_threads.physical_cores", lambda: 4)
    threads = engine_threads(asked, bundle)
    assert (threads.most, threads.adapts) == (most, adapts)


def test_an_error_in_a_run_is_passed_on():
    threads = engine(Machine(2), 2)
    with pytest.raises(ValueError, match="its own"), threads:
        raise ValueError("its own")
