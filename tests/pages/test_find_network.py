"""Configure → Find a network: search, filters, licences, and networks in folders."""

import json
import os

import pytest
import timm
from safetensors.torch import save_file

from finetune_core.models import timm_networks
from pages.shared.configure.networks import list_networks
from tests.factories import shared_images
from tests.pages.harness import open_page, unescaped_text


@pytest.fixture
def configure(tmp_path, monkeypatch, data_id_of):
    images = shared_images(red=12, blue=12)
    monkeypatch.setenv("THAW_DATA_ROOTS", os.pathsep.join(map(str, (images, tmp_path))))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return open_page("configure", data=data_id_of(images), state={"networks_open": True})


@pytest.fixture
def build_arguments(monkeypatch):
    """Return the arguments with which the structure of each network was built."""
    found, build = [], timm_networks.build
    monkeypatch.setattr(
        timm_networks, "build", lambda *args, **kwargs: found.append(args) or build(*args, **kwargs)
    )
    return found


@pytest.fixture
def folder(tmp_path):
    """Return a network in a readable folder."""
    (tmp_path / "mine").mkdir()
    config = {
        "input_size": [3, 160, 160],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "license": "cc-by-nc-4.0",
    }
    (tmp_path / "mine" / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "pretrained_cfg": config})
    )
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "mine" / "model.safetensors")
    return tmp_path / "mine"


def table(at):
    return next(one.value for one in at.dataframe if "Network" in one.value.columns)


@pytest.mark.train
def test_networks_are_found_by_a_part_of_their_name_and_filtered(configure):
    assert len(table(configure)) > 1500
    at = configure.text_input(key="networks_search").set_value("convnextv2_atto").run()
    found = table(at)
    assert set(found["Network"]) == {
        "timm/convnextv2_atto.fcmae",
        "timm/convnextv2_atto.fcmae_ft_in1k",
    }
    assert set(found["Licence"]) == {"cc-by-nc-4.0 · research only"}
    assert not found["Ready"].any()
    # megabytes of 3.4 to 3.7 M parameters in float32
    assert found["Download"].between(13, 16).all()
    at.text_input(key="networks_search").set_value("efficientnet_lite0")
    at.session_state["networks_filters"] = ["On this machine"]
    assert list(table(at.run())["Network"]) == ["efficientnet_lite0"]
    assert table(at)["Download"].isna().all()
    at.text_input(key="networks_search").set_value("convnextv2_atto")
    at.session_state["networks_filters"] = ["Exclude research-only"]
    assert not len(table(at.run()))


@pytest.mark.train
def test_a_folder_is_used_with_its_own_size_and_licence_and_built_once(
    configure, folder, build_arguments
):
    name = f"local-dir:{folder}"
    at = configure.text_input(key="networks_named").set_value(name).run()
    at.button(key="networks_use_named").click().run()
    assert at.session_state["form_backbone"] == name
    assert at.session_state["form_image_size"] == 160
    assert "mean 0.1, 0.2, 0.3" in unescaped_text(at)
    assert "cc-by-nc-4.0" in unescaped_text(at)
    assert "Research only" in unescaped_text(at)
    at.number_input(key="form_epochs").set_value(3).run()
    assert len(build_arguments) == 1


@pytest.mark.train
def test_a_folder_outside_those_that_a_server_may_read_is_refused(configure, folder, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(shared_images(red=12, blue=12)))
    at = configure.text_input(key="networks_named").set_value(f"local-dir:{folder}").run()
    assert "outside the folders" in unescaped_text(at)
    assert "networks_use_named" not in {one.key for one in at.button}


def test_the_list_of_the_form_is_short_and_holds_what_is_chosen():
    names = list_networks("timm/test_vit.r160_in1k")
    assert len(names) < 150
    assert {"efficientnet_lite0", "resnet18", "timm/test_vit.r160_in1k"} <= set(names)


@pytest.mark.train
def test_a_network_that_cannot_be_built_is_not_offered_and_built_once(
    configure, folder, build_arguments
):
    description = json.loads((folder / "config.json").read_text()) | {
        "model_args": {"depth": "six"}
    }
    (folder / "config.json").write_text(json.dumps(description))
    at = configure.text_input(key="networks_named").set_value(f"local-dir:{folder}").run()
    at.number_input(key="form_epochs").set_value(3).run()
    assert "cannot be built" in unescaped_text(at)
    assert "networks_use_named" not in {one.key for one in at.button}
    assert len(build_arguments) == 1
    del description["model_args"]
    (folder / "config.json").write_text(json.dumps(description))
    at.run()
    assert "networks_use_named" in {one.key for one in at.button}
