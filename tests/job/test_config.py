import pytest

from quadpipe.errors import ConfigError
from quadpipe.job import JobConfig


def test_flat_options_reach_their_configuration():
    config = JobConfig.from_options(tokens=64, codec="jpg", workers=3)
    assert (config.tokenizer.tokens, config.dataset.codec, config.run.workers) == (64, "jpg", 3)
    assert config.dataset.codec_parameters() == {"name": "jpg", "quality": 95}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokns": 64}, "unknown option tokns; use .*tokens"),
        (
            {"codec": "jpg", "patch_size": 14, "max_patch_size": 56, "image_size": 224},
            "multiple of 8",
        ),
        ({"codec": "gif"}, "codec 'gif' is not one of raw, jpg, png"),
        ({"quality": 90}, "quality is for codec jpg, not raw"),
        ({"codec": "jpg", "quality": 0}, "quality 0 is not from 1 to 100"),
        ({"split": "dev"}, "split 'dev' is not one of train, val, test"),
        ({"scorer": "magic"}, "unknown scorer 'magic'"),
        ({"in_process": True, "address": "auto"}, "without workers or address"),
        ({"workers": "2"}, "workers must be a whole number, not '2'"),
        ({"codec": "jpg", "quality": 101}, "quality 101 is not from 1 to 100"),
        ({"samples_per_shard": 0}, "samples_per_shard 0 is not from 1 to 100,000"),
        ({"views": 101}, "views 101 is not from 1 to 100"),
        ({"view_scale": (0.5, 1.2)}, "view_scale 0.5,1.2 is not a range .*at most 1"),
        ({"view_ratio": (2.0, 1.0)}, "view_ratio 2,1 is not a range"),
        ({"val_share": 1.0}, "val_share 1 is not from 0 to below 1"),
        ({"limit": 0}, "limit 0 is below 1"),
        (
            {"image_size": 16384, "tokens": 65536},
            "image_size 16384x16384 has 268,435,456 pixels, .* give max_pixels 268435456 or more",
        ),
        ({"workers": 0}, "workers 0 is below 1"),
        ({"in_process": True, "workers": 2}, "in_process makes one shard at a time"),
        ({"max_rejected": "many"}, "max_rejected 'many' is neither a share like 1% nor a count"),
        ({"max_rejected": "101%"}, "max_rejected '101%' is neither"),
        ({"max_rejected": "-1"}, "max_rejected '-1' is neither"),
    ],
)
def test_invalid_job_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        JobConfig.from_options(**options)


@pytest.mark.parametrize(
    ("bound", "allowed"), [("1%", 50), ("0%", 0), ("100%", 5000), ("7", 7), ("0.01%", 0)]
)
def test_rejects_are_bounded_by_a_share_or_a_count(bound, allowed):
    assert JobConfig.from_options(max_rejected=bound).run.allowed_rejects(5000) == allowed
