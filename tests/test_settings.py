import pytest

from adaptive.settings import Alarms, Level, Model


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"memory_samples": 1000}, "power of two and at least 512, got 1000"),
        ({"memory_samples": 256}, "power of two and at least 512, got 256"),
        ({"horizon_samples": 0}, "model.horizon_samples must be at least 1, got 0"),
        ({"encoder": "lstm"}, "model.encoder must be one of delta, attention, got 'lstm'"),
        ({"patch_samples": 0}, "model.patch_samples must be at least 1, got 0"),
        ({"layers": 0}, "model.layers must be at least 1, got 0"),
        ({"learn_every_samples": -1}, "model.learn_every_samples must be at least 0, got -1"),
        ({"replay_moments": -1}, "model.replay_moments must be at least 0, got -1"),
        ({"objective": "mse"}, "one of huber, misses, got 'mse'"),
        ({"objective": "misses", "replay_moments": 8}, "must be 0 where model.objective"),
        ({"dim": 30}, "multiple of model.heads, got 30 and 4"),
        ({"levels": (Level("big", 8192),)}, "memory_samples of 'big' must be in 0..4096"),
        ({"levels": (Level("wide", 512, 256),)}, "window_samples of 'wide' must be in 0..128"),
        ({"levels": (Level("tiny", 96),)}, "of 'tiny' must be 0, or a multiple of 16 and at"),
        ({"levels": (Level("odd", 600),)}, "of 'odd' must be 0, or a multiple of 16 and at least"),
        ({"levels": (Level("a"), Level("a", 512))}, "different names"),
    ],
)
def test_what_no_model_can_be_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        Model(**table)


@pytest.mark.parametrize(
    "table", [{"alarms_per_day": -1.0}, {"alarms_per_day": float("nan")}, {"rest_samples": -1}]
)
def test_what_no_alarms_can_be_is_refused(table):
    (name,) = table
    with pytest.raises(ValueError, match=name):
        Alarms(**table)
