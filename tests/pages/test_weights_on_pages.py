"""Missing pretrained weights: the page downloads them, and nothing is queued before."""

import hashlib

import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.models.catalogue import backbone_info, create
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
from tests.pages.harness import open_page

NAME = "squeezenet1_1"


@pytest.fixture
def served_weights(file_server, tmp_path, monkeypatch):
    """Put the weights on a server, not on this machine; return the file that is served."""
    folder, address = file_server
    torch.manual_seed(5)
    torch.save(create(NAME).state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    file = folder / f"{NAME}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    monkeypatch.setattr(SqueezeNet1_1_Weights.DEFAULT.value, "url", f"{address}/{file.name}")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    assert not backbone_info(NAME).is_ready
    return file


@pytest.fixture
def open_with_network(served_weights, folder, data_id_of):
    """Open a page with that network in the form: ``open_with_network(page)``."""
    form = {"backbone": NAME, "image_size": 64, "epochs": 1}
    return lambda page, **state: open_page(page, data=data_id_of(folder), form=form, state=state)


def button(at, start):
    return next(button for button in at.button if button.label.startswith(start))


@pytest.mark.train
@pytest.mark.parametrize("page", ["configure", "compare"])
def test_start_waits_for_the_weights_and_the_page_downloads_them(
    open_with_network, page, served_weights, wait_until_finished
):
    assert not button(open_with_network(page, weights_from="Random"), "Start ").disabled
    at = open_with_network(page)
    assert button(at, "Start ").disabled
    assert f"The weights of {NAME} have to be downloaded first" in button(at, "Start ").help
    button(at, "Download the weights").click().run()
    wait_until_finished(at)
    assert backbone_info(NAME).file.read_bytes() == served_weights.read_bytes()
    assert not button(at, "Start ").disabled
    assert not [one for one in at.button if one.label.startswith("Download the weights")]
    assert not at.error


def test_a_download_that_fails_says_why_and_nothing_is_queued(
    open_with_network, served_weights, wait_until_finished
):
    served_weights.unlink()
    at = open_with_network("configure")
    button(at, "Download the weights").click().run()
    wait_until_finished(at)
    assert "could not be downloaded" in "".join(error.value for error in at.error)
    assert button(at, "Start ").disabled
    assert RunStore(paths.runs_dir()).list_runs() == []


def test_the_worker_queues_no_run_whose_weights_are_not_there(served_weights, folder, tmp_path):
    config = make_config({"data": str(folder), "backbone": NAME, "image_size": 64})
    with pytest.raises(ConfigError, match="download them first"):
        Worker(tmp_path / "runs").submit(config)
    assert not (tmp_path / "runs").exists()
