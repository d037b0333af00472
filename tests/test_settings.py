import pytest

from adaptive.settings import Model


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"memory_samples": 1000}, "power of two and at least 512, got 1000"),
        ({"patch_samples": 0}, "model.patch_samples must be at least 1, got 0"),
        ({"layers": 0}, "model.layers must be at least 1, got 0"),
        ({"replay_moments": -1}, "model.replay_moments must be at least 0, got -1"),
        ({"objective": "mse"}, "one of huber, misses, got 'mse'"),
        ({"objective": "misses", "replay_moments": 8}, "must be 0 where model.objective"),
        ({"dim": 30}, "multiple of model.heads, got 30 and 4"),
    ],
)
def test_what_no_model_can_be_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        Model(**table)
