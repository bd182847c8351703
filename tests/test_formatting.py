import pytest

from finetune_core import formatting


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.9312, "93.1 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (0.99999, "99.9 %"),
        (0.00001, "0.1 %"),
        (0.5, "50.0 %"),
    ],
)
def test_percent(share, said):
    assert formatting.percent(share) == said


def test_percent_without_decimals_is_not_rounded_to_a_perfect_score_either():
    assert formatting.percent(0.999, digits=0) == "99 %"
    assert formatting.percent(1, digits=0) == "100 %"


@pytest.mark.parametrize(
    ("difference", "said"), [(0.021, "2.1"), (-0.014, "−1.4"), (-0.0004, "0.0"), (-0.0, "0.0")]
)
def test_points(difference, said):
    assert formatting.points(difference) == said


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0"), (999, "999"), (1234, "1,234"), (11_689_512, "11.7 million")]
)
def test_number(count, said):
    assert formatting.number(count) == said


@pytest.mark.parametrize(("count", "said"), [(12, "12"), (9408, "9.4 k"), (8_393_728, "8.4 M")])
def test_short_number(count, said):
    assert formatting.short_number(count) == said


def test_things():
    assert formatting.things(1, "image") == "1 image"
    assert formatting.things(0, "image") == "0 images"
    assert formatting.things(1234, "image") == "1,234 images"
    assert formatting.things(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.42, "0.4 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3600, "1 h 0 min"),
        (7380, "2 h 3 min"),
    ],
)
def test_duration(seconds, said):
    assert formatting.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 kB"),
        (17_000_000, "17.0 MB"),
        (25_769_803_776, "25.8 GB"),
    ],
)
def test_size(count, said):
    assert formatting.size(count) == said


def test_a_gpus_memory_is_never_added_to_the_programs():
    assert formatting.memory(4e8, None) == "400.0 MB"
    assert formatting.memory(4e8, 3e9) == "3.0 GB of GPU memory, 400.0 MB of memory"


@pytest.mark.parametrize(("value", "said"), [(0.0001, "0.0001"), (0.000012, "1.2e-05"), (1, "1")])
def test_rate(value, said):
    assert formatting.learning_rate_text(value) == said


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Last block", "last block"),
        ("Linear probe, then full (LP-FT)", "linear probe, then full (LP-FT)"),
        ("LoRA (low-rank updates)", "LoRA (low-rank updates)"),
        ("WiSE-FT of 1 run", "WiSE-FT of 1 run"),
    ],
)
def test_abbreviations_keep_their_capitals_in_a_sentence(title, said):
    assert formatting.mid_sentence(title) == said
