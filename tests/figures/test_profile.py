"""Figure of a profile."""

from finetune_core.figures.profile import describe_profile, plot_profile
from finetune_core.figures.style import COLD, WARM
from tests.profiling.made import STAGES, make_arm, make_profile

PROFILE = make_profile(
    make_arm("short", "stem", gain=-0.05),
    make_arm("stage", "block1", gain=0.01),
    make_arm("stage", "block2", gain=0.061),
    make_arm("stages", "block2", "block1", gain=0.07),
    make_arm("full", *STAGES, gain=0.03),
    chosen=2,
)


def test_what_gains_is_ember_and_what_does_not_is_ice_blue():
    tiles, bars = plot_profile(PROFILE).data
    assert list(bars.marker.color) == [COLD, COLD, WARM, WARM, WARM]
    assert [round(value, 1) for value in bars.y] == [-5.0, 1.0, 6.1, 7.0, 3.0]
    assert len(set(tiles.marker.color)) == 2


def test_it_does_not_rest_on_colour_alone():
    tiles, bars = plot_profile(PROFILE).data
    assert list(tiles.text) == ["<b>−5.0</b>", "<b>+1.0</b>", "<b>✓<br>+6.1</b>"]
    assert bars.marker.pattern.shape[0] == "/"
    assert set(bars.marker.pattern.shape[1:]) == {""}
    assert "block2 6.1 (4.1 to 8.1)" in describe_profile(PROFILE)


def test_intervals_are_drawn_as_they_are_told():
    _, bars = plot_profile(PROFILE).data
    for arm_, up, down in zip(
        PROFILE.arms, bars.error_y.array, bars.error_y.arrayminus, strict=True
    ):
        assert round(up / 100, 9) == round(arm_.gain.high - arm_.gain.value, 9)
        assert round(down / 100, 9) == round(arm_.gain.value - arm_.gain.low, 9)


def test_a_stage_without_a_run_is_drawn_without_a_gain():
    figure = plot_profile(make_profile(make_arm("stage", "block2", gain=0.06)))
    assert list(figure.data[0].text) == ["<b>–</b>", "<b>–</b>", "<b>✓<br>+6.0</b>"]


def test_a_stage_of_a_strange_name_is_no_markup():
    strange = make_profile(make_arm("stage", "<i>x", gain=0.06), stages=("<i>x",))
    assert "<i>" not in plot_profile(strange).layout.xaxis2.ticktext[0]
