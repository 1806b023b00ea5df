from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.healing.augment import Variation, noise_clip, variation, vary
from prunella.healing.clips import open_speech, tokenize
from prunella.healing.features import CLEAN, FeatureStore
from prunella.healing.feeder import Feeder
from prunella.healing.order import epoch_steps, split_step
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.synth.noise import colored_noise

LENGTHS = st.lists(st.integers(10, 300), min_size=1, max_size=60).map(np.array)


@given(LENGTHS, st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_clip_once(lengths, epoch, in_order):
    steps = epoch_steps(lengths, 600, 200, 1, epoch, sorted_order=in_order)
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    assert all(len(step) == 1 or lengths[step].sum() <= 600 for step in steps)
    assert steps == epoch_steps(lengths, 600, 200, 1, epoch, sorted_order=in_order)


@given(LENGTHS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_processes_share_a_step(lengths, processes):
    step = list(range(len(lengths)))
    shares = split_step(step, lengths, 200, processes)
    assert len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for group in share for index in group) == step


def test_variations_are_reproducible_and_in_range():
    plan = Augmentation(trailing_silence=1.0, noisy=1.0)
    made = [variation(plan, 0, clip, 1, 5.0, 29.9) for clip in range(200)]
    assert made == [variation(plan, 0, clip, 1, 5.0, 29.9) for clip in range(200)]
    assert len({one.speed for one in made}) > 5 and all(0.9 <= one.speed <= 1.1 for one in made)
    full = [one for one in made if one.seconds(5.0) == pytest.approx(29.9)]
    assert 60 < len(full) < 140
    assert max(one.seconds(5.0) for one in made) < 29.91
    assert variation(plan, 0, 3, 0, 5.0, 29.9).snr_db is None


def test_vary():
    samples = np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 440 / SAMPLE_RATE).astype(np.float32) * 0.1
    fast = vary(samples, Variation(speed=1.1, silence=0.5))
    assert len(fast) == pytest.approx(SAMPLE_RATE / 1.1 + SAMPLE_RATE / 2, abs=2)
    assert np.abs(fast[-SAMPLE_RATE // 3 :]).max() == 0
    spectrum = np.abs(np.fft.rfft(fast[: SAMPLE_RATE // 2]))
    assert 2 * int(spectrum.argmax()) == pytest.approx(484, abs=3)
    noisy = vary(samples, Variation(snr_db=10.0, noise="pink", seed=4))
    assert np.mean(np.square(noisy - samples)) == pytest.approx(np.mean(np.square(samples)) / 10, rel=0.02)
    assert np.array_equal(noisy, vary(samples, Variation(snr_db=10.0, noise="pink", seed=4)))


def test_noise():
    for color in ("white", "pink", "brown", "hum"):
        noise = colored_noise(8_000, color, np.random.default_rng(0))
        assert np.mean(np.square(noise)) == pytest.approx(1.0, rel=1e-3)
    clips = [noise_clip(0, number) for number in range(20)]
    assert all(SAMPLE_RATE <= len(clip) <= 10 * SAMPLE_RATE and np.abs(clip).max() <= 1 for clip in clips)


def store(model, manifest, augmentation, **options):
    return FeatureStore(model, tokenize(model, open_speech([manifest])), augmentation, 0, **options)


def test_the_cache_gives_what_was_computed(model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("prunella.healing.features.KEEP_FREE", 0)  # the machine's disk may be all but full
    plan = Augmentation(noise_only=0.2)
    cached, plain = (store(model, manifest, plan, encode=True, folder=folder) for folder in (tmp_path, None))
    last = len(cached) - 1
    for index, variant in ((0, CLEAN), (1, 2), (last, 0)):
        first = cached.finish(cached.load(index, variant), index, variant).rows
        # Sums round by the order in memory: a run that goes on from the cache would say other losses.
        assert first.stride() == cached.load(index, variant).rows.stride()
        assert cached.load(index, variant).rows.dtype == torch.float16
        assert torch.equal(cached.load(index, variant).rows, first)
        assert torch.equal(plain.finish(plain.load(index, variant), index, variant).rows, first)
    assert cached.tokens(last) == (2,)
    torn = next(path for path in tmp_path.rglob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:50])
    again = store(model, manifest, plan, encode=True, folder=tmp_path)
    for index, variant in ((0, CLEAN), (1, 2), (last, 0)):
        assert torch.equal(
            again.finish(again.load(index, variant), index, variant).rows,
            plain.finish(plain.load(index, variant), index, variant).rows,
        )


def test_a_full_disk_ends_the_caching_only(model, manifest, tmp_path, monkeypatch, capsys):
    one = store(model, manifest, Augmentation.none(), encode=True, folder=tmp_path)
    monkeypatch.setattr("prunella.healing.features.KEEP_FREE", 1 << 62)
    assert len(one.finish(one.load(0, 0), 0, 0).rows) > 0
    assert "no longer cached" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_positions_are_known_before_audio_is_read(model, manifest):
    plan = Augmentation(trailing_silence=0.5, noise_only=0.1)
    one = store(model, manifest, plan, encode=False)
    for epoch in (0, 1):
        positions = one.positions(epoch)
        for index in (0, 5, 9, len(one) - 1):
            mel = one.load(index, one.variant(index, epoch)).rows
            actual = 2 + len(mel) // 10 + len(one.tokens(index))
            assert abs(actual - positions[index]) <= 1
            assert len(mel) <= 3_000


@pytest.mark.slow
def test_the_feeder_starts_anywhere(model, manifest):
    plan = HealingPlan(steps=1, batch_positions=200, micro_positions=100)
    feeder = Feeder(store(model, manifest, Augmentation(noise_only=0.1), encode=True), plan)
    with ThreadPoolExecutor(1) as reader:
        steps = feeder.steps(0, 0, reader)
        whole = [next(steps) for _ in range(feeder.steps_in_epoch(0) + 4)]
        late = feeder.steps(whole[3].epoch, whole[3].place, reader)
        for expected in whole[3:]:
            got = next(late)
            assert (got.epoch, got.place, got.tokens) == (expected.epoch, expected.place, expected.tokens)
            a, b = feeder.inputs(got, 0), feeder.inputs(expected, 0)
            assert torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels)
        assert {step.epoch for step in whole} >= {0, 1}


def test_masks_hide_time(model, manifest):
    one = store(model, manifest, replace(Augmentation(), masks=5.0), encode=True)
    ready = one.finish(one.load(0, 0), 0, 0).rows
    hidden = one.masked(ready, 0, 0)
    zeros = (hidden == 0).all(dim=1)
    assert 0 < int(zeros.sum()) < len(hidden)
    assert torch.equal(hidden[~zeros], ready.float()[~zeros])
    assert torch.equal(hidden, one.masked(ready, 0, 0))
