"""The network's input is shown on Configure, and can be changed there."""

from finetune_core import paths
from finetune_core.runs.store import RunStore
from tests.pages.harness import address, button, open_page

FIELDS = ("form_mean", "form_std", "form_crop_pct")


def test_input_settings_are_the_networks_until_they_are_typed_and_survive_a_reload(folder, known):
    at = open_page("configure", data=known(folder))
    assert any("mean 0.5, 0.5, 0.5" in one.value for one in at.caption)
    assert [
        (at.text_input(key=key).value, at.text_input(key=key).placeholder) for key in FIELDS
    ] == [("", "from the network")] * 3
    assert "settings" not in at.query_params
    at.text_input(key="form_mean").set_value("0.1, 0.2,0.3").run()
    at.text_input(key="form_crop_pct").set_value("90 %")
    at.selectbox(key="form_interpolation").set_value("bicubic")
    at.number_input(key="form_epochs").set_value(1).run()
    assert not at.exception
    again = open_page("configure", **address(at))
    assert [again.text_input(key=key).value for key in FIELDS] == ["0.1, 0.2, 0.3", "", "0.9"]
    button(again, "Start training").click().run()
    assert not again.exception
    (run,) = RunStore(paths.runs_dir()).runs()
    assert (run.config.mean, run.config.std, run.config.crop_pct) == ((0.1, 0.2, 0.3), None, 0.9)
    assert run.config.interpolation == "bicubic"


def test_what_is_wrong_with_them_is_said_beside_them_all_at_once(folder, known):
    at = open_page("configure", data=known(folder))
    at.text_input(key="form_mean").set_value("0.1, 0.2")
    at.text_input(key="form_std").set_value("0, 0, 0").run()
    said = "\n".join(one.value for one in at.markdown).replace("\\", "")
    assert "Input mean must be three numbers from 0 to 1" in said
    assert "Input standard deviation must be three numbers from 0.001 to 1" in said
    assert button(at, "Start training").disabled


def test_emptied_fields_are_the_networks_again(folder, known):
    at = open_page("configure", data=known(folder))
    at.text_input(key="form_std").set_value("0.2, 0.2, 0.2").run()
    assert "settings" in at.query_params
    at.text_input(key="form_std").set_value(" ").run()
    assert not at.exception
    assert "settings" not in at.query_params
    assert not button(at, "Start training").disabled
