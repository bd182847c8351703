import pytest

from finetune_core import formatting


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (
            "format_percent",  # never rounded to a perfect score, or to nothing
            {0.9312: "93.1 %", 1.0: "100.0 %", 0.0: "0.0 %", 0.99999: "99.9 %", 0.00001: "0.1 %"},
        ),
        ("format_points", {0.021: "2.1", -0.014: "−1.4", -0.0004: "0.0", -0.0: "0.0"}),
        ("format_number", {0: "0", 999: "999", 1234: "1,234", 11_689_512: "11.7 million"}),
        ("format_short_number", {12: "12", 9408: "9.4 k", 8_393_728: "8.4 M"}),
        (
            "format_duration",
            {0.42: "0.4 s", 42.4: "42 s", 59.7: "1 min 0 s", 130: "2 min 10 s"}
            | {3600: "1 h 0 min", 7380: "2 h 3 min"},
        ),
        (
            "format_rough_duration",
            {0.2: "1 s", 8.4: "8 s", 42.4: "40 s", 57.6: "1 min", 983: "16 min", 9000: "2.5 h"},
        ),
        (
            "format_bytes",
            {0: "0 B", 999: "999 B", 1536: "1.5 kB", 17_000_000: "17.0 MB"}
            | {25_769_803_776: "25.8 GB"},
        ),
        ("format_learning_rate", {0.0001: "0.0001", 0.000012: "1.2e-05", 1: "1"}),
        (
            "lower_first",  # abbreviations keep their capitals
            {
                "Last block": "last block",
                "Linear probe, then full (LP-FT)": "linear probe, then full (LP-FT)",
                "LoRA (low-rank updates)": "LoRA (low-rank updates)",
                "WiSE-FT of 1 run": "WiSE-FT of 1 run",
            },
        ),
    ],
)
def test_values_are_written_for_people(function, shown):
    assert {value: getattr(formatting, function)(value) for value in shown} == shown


def test_percent_without_decimals_is_not_rounded_to_a_perfect_score_either():
    assert formatting.format_percent(0.999, digits=0) == "99 %"
    assert formatting.format_percent(1, digits=0) == "100 %"


def test_counts_of_things_have_a_plural():
    assert formatting.pluralize(1, "image") == "1 image"
    assert formatting.pluralize(0, "image") == "0 images"
    assert formatting.pluralize(1234, "image") == "1,234 images"
    assert formatting.pluralize(2, "class", "classes") == "2 classes"


def test_a_gpus_memory_is_never_added_to_the_programs():
    assert formatting.format_memory(4e8, None) == "400.0 MB"
    assert formatting.format_memory(4e8, 3e9) == "3.0 GB of GPU memory, 400.0 MB of memory"
