"""The commands that list networks and public sets, and that fetch one."""

import pytest

from tests.command_line import thaw, thaw_json


def test_networks_are_listed_with_size_and_licence():
    rows = {row["name"]: row for row in thaw_json("backbones")["backbones"]}
    assert len(rows) > 1500
    assert rows["efficientnet_lite0"]["ready"] is True
    assert rows["resnet18"]["parameters"] == 11_689_512
    atto = rows["timm/convnextv2_atto.fcmae_ft_in1k"]
    assert (atto["research_only"], atto["licence"], atto["image_size"]) == (
        True,
        "cc-by-nc-4.0",
        224,
    )


def test_networks_can_be_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    rows = thaw_json("backbones", "ConvNeXtV2_Atto")["backbones"]
    assert {"convnextv2_atto" in row["name"] for row in rows} == {True}
    assert {row["parameters"] > 3e6 for row in rows} == {True}  # counted for a few networks
    source = "top-1 is what torchvision states"
    table = thaw("backbones", "convnextv2_atto.fcmae_ft").stdout
    assert ("· research only" in table, source in table) == (True, False)
    table = thaw("backbones", "resnet18").stdout
    assert ("69.8 %" in table, source in table) == (True, True)
    assert thaw_json("backbones", "--ready", "resnet18")["backbones"] == []


def test_public_sets_are_listed_and_one_that_is_there_is_not_fetched(home, image_folder):
    folder = image_folder(home / "data" / "eurosat", {"Forest": 3})
    rows = {row["name"]: row for row in thaw_json("fetch")["public_sets"]}
    assert {"oxford_pets", "flowers102", "eurosat", "fashion_mnist", "cifar10"} == set(rows)
    for row in rows.values():
        assert row["licence"]
        assert row["source"].startswith("https://")
        assert row["download_bytes"] > 1e7
        assert row["images"] > row["classes"] > 1
    assert [name for name, row in rows.items() if row["fetched"]] == ["eurosat"]
    assert thaw_json("fetch", "eurosat") == {"name": "eurosat", "data": str(folder)}
    assert "Licence: MIT" in thaw("fetch", "eurosat").stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fetch imagenet", ["no public set 'imagenet'", "fetch` lists them"]),
        ("fetch eurosat", ["EuroSAT"]),  # no network
        ("inspect cifar10", ["CIFAR-10 is not on this machine yet", "fetch cifar10", "170.5 MB"]),
        ("train cifar10", ["CIFAR-10 is not on this machine yet"]),
    ],
)
def test_a_public_set_that_cannot_be_had_ends_with_2_and_words(command, words, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = thaw(*command.split(), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("\n") == 1 or "eurosat" in command
