import sys

import numpy as np
import pytest
import torch
from PIL import Image

from finetune_core.data.dataset import load_dataset
from finetune_core.data.rowcache import CACHE
from finetune_core.errors import ConfigError, DataError
from finetune_core.inspection import features
from finetune_core.inspection.features import compute_features
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import build_network
from finetune_core.models.partition import SplitError
from finetune_core.training.data_pipeline import feeding
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.data_pipeline.trunk import split_network
from finetune_core.training.devices import turn as device_turn
from finetune_core.training.devices.device import choose_device
from finetune_core.work import Step
from tests.drain import drain
from tests.factories import image_folder

LITE = "efficientnet_lite0"


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(device_turn, "choose_device", lambda *_: choose_device("cpu", "fp32"))


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images", {"red": 4, "blue": 4, "green": 4})


def compute(folder, size=32):
    """Return (steps, features)."""
    return drain(compute_features(load_dataset(folder), LITE, size))


def test_padded_images_are_seen_whole_and_kept_apart_from_cropped_ones(tmp_path):
    for name, color in {"red": "red", "blue": "blue"}.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            strip = Image.new("RGB", (120, 24), (60 * number,) * 3)
            strip.paste(color, (0, 0, 24, 24))  # outside of the centre crop
            strip.save(tmp_path / name / f"{number}.png")
    dataset = load_dataset(tmp_path)
    blue, red = (np.flatnonzero(dataset.table["class"] == name) for name in ("blue", "red"))
    for fit, hidden in (("crop", True), ("pad", False)):
        _, found = drain(compute_features(dataset, LITE, 32, fit))
        assert np.allclose(found.final[blue], found.final[red], atol=1e-4) == hidden


def assert_equal(ours, theirs):
    assert ours.rows.tolist() == theirs.rows.tolist()
    assert ours.stages == theirs.stages
    assert all(np.array_equal(a, b) for a, b in zip(ours.by_stage, theirs.by_stage, strict=True))


def hook_features(network, images, with_class_token=False):
    """Return the output of each stage's last module, pooled by hand.

    The output is averaged over the image, or its class token is taken. The head is left out.
    """
    seen, hooks = {}, []
    for stage in network.stages[:-1]:
        module = network.model.get_submodule(stage.modules[-1])
        hooks.append(
            module.register_forward_hook(
                lambda _m, _i, output, name=stage.name: seen.__setitem__(name, output)
            )
        )
    with torch.no_grad():
        network.model(images)
    for hook in hooks:
        hook.remove()
    return {
        name: average(output, (2, 3) if output.ndim == 4 else (1,))
        if output.ndim != 3 or not with_class_token
        else output[:, 0]
        for name, output in seen.items()
    }


def average(output, axes):
    return output.mean(axes) if output.ndim > 2 else output


@pytest.mark.train
def test_features_are_the_means_of_what_each_stage_yields(folder):
    _, found = compute(folder, 64)
    dataset = load_dataset(folder)
    images = torch.stack(
        [
            network_input(path, backbone_info(LITE), 64).tensor
            for path in dataset.get_paths(dataset.table)
        ]
    )
    wanted = hook_features(build_network(LITE, "pretrained", 3, seed=0), images)
    assert found.stages == tuple(wanted) == ("stem", *(f"block{n}" for n in range(1, 8)))
    assert found.rows.tolist() == list(range(12))
    for stage, ours in zip(found.stages, found.by_stage, strict=True):
        assert ours.dtype == np.float32
        assert ours == pytest.approx(wanted[stage].numpy(), rel=1e-4, abs=1e-4), stage
    assert found.final is found.by_stage[-1]
    assert found.final.shape == (12, 1280)


@pytest.mark.train
@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 64), ("vit_b_16", 224)])
def test_other_structures_have_one_vector_a_stage_too(backbone, size):
    network = build_network(backbone, "none", 3, seed=0)
    pooled, stages = features.pool_stages(network)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = dict(zip(stages, pooled(images).split(pooled.widths, dim=1), strict=True))
    wanted = hook_features(network, images, with_class_token=backbone == "vit_b_16")
    assert stages == tuple(wanted)
    # after the stem, the class token has seen nothing
    for stage in stages if backbone == "resnet18" else stages[1:]:
        assert found[stage].shape == wanted[stage].shape, stage
        torch.testing.assert_close(found[stage], wanted[stage], rtol=1e-4, atol=1e-5)


def test_features_before_the_head_are_what_the_head_gets():
    network = build_network("resnet18", "none", 3, seed=0)
    pooled, _ = features.pool_stages(network)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = pooled(images)[:, -pooled.widths[-1] :]
        head = network.head_layers[0]
        torch.testing.assert_close(head(last), network.model(images))


@pytest.mark.train
def test_only_images_that_are_new_are_decoded_and_computed(folder, monkeypatch):
    steps, first = compute(folder)
    assert {step.phase for step in steps} == {"decode", "features"}
    assert steps[-1] == Step(12, 12, "features")
    with monkeypatch.context() as patch:
        patch.setattr("finetune_core.data.pixels.read_square", None)
        steps, second = compute(folder)
        assert steps == []
        assert_equal(first, second)
        (folder / "red").rename(folder / "aardvark")
        steps, relabelled = compute(folder)
        assert steps == []
        assert np.array_equal(np.sort(first.final, axis=0), np.sort(relabelled.final, axis=0))
    image_folder(folder, {"yellow": 3})
    copy = folder / "aardvark" / "copy.png"
    copy.write_bytes((folder / "aardvark" / "000.png").read_bytes())
    steps, after = compute(folder)
    assert [step for step in steps if step.phase == "features"] == [Step(3, 3, "features")]
    assert len(after.rows) == 16
    ids = load_dataset(folder).table["id"].tolist()
    places = [ids.index(f"aardvark/{name}.png") for name in ("000", "copy")]
    assert np.array_equal(*after.final[places])
    kept = [ids.index(name) for name in ids if "yellow" not in name and "copy" not in name]
    assert np.array_equal(after.final[kept], relabelled.final)


@pytest.mark.train
def test_whole_blocks_are_kept_when_it_is_broken_off(folder, monkeypatch):
    monkeypatch.setattr(features, "_KEPT_AT_ONCE", 5)
    work = compute_features(load_dataset(folder), LITE, 32)
    assert next(step for step in work if step.phase == "features" and step.done > 5) == Step(
        10, 12, "features"
    )
    work.close()
    steps, whole = compute(folder)
    assert [step for step in steps if step.phase == "features"] == [
        Step(5, 7, "features"),
        Step(7, 7, "features"),
    ]
    CACHE.clear()
    monkeypatch.undo()
    monkeypatch.setattr(device_turn, "choose_device", lambda *_: choose_device("cpu", "fp32"))
    _, at_once = compute(folder)
    assert whole.final == pytest.approx(at_once.final, rel=1e-4, abs=1e-4)


# A block takes 0.00003 GB, all of them 0.00008.
@pytest.mark.parametrize("disk", ["0", "0.00005"], ids=["no room", "room for some"])
def test_without_room_for_all_it_says_so(folder, monkeypatch, disk):
    monkeypatch.setattr(features, "_KEPT_AT_ONCE", 5)
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", disk)
    with pytest.raises(DataError, match=r"no room for the features.*THAW_CACHE_DISK_GB"):
        compute(folder)


@pytest.mark.train
def test_on_disk_the_numbers_are_the_same_and_stay(folder, monkeypatch):
    _, first = compute(folder)
    CACHE.clear()
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    steps, second = compute(folder)
    assert steps[-1] == Step(12, 12, "features")
    CACHE.clear()  # as after a restart
    steps, third = compute(folder)
    assert steps == []
    assert_equal(first, second)
    assert_equal(first, third)


@pytest.mark.train
def test_another_size_is_another_table(folder):
    _, small = compute(folder, 32)
    steps, large = compute(folder, 48)
    assert steps[-1] == Step(12, 12, "features")
    assert not np.allclose(small.final, large.final)
    steps, again = compute(folder, 32)
    assert steps == []
    assert_equal(small, again)


@pytest.mark.train
def test_images_that_cannot_be_decoded_any_more_are_missing(folder):
    dataset = load_dataset(folder)
    gone = dataset.table["id"].tolist().index("green/002.png")
    (folder / "green/002.png").unlink()
    _, found = drain(compute_features(dataset, LITE, 32))
    assert found.rows.tolist() == [row for row in range(12) if row != gone]
    assert len(found.final) == 11
    for file in folder.rglob("*.png"):
        file.unlink()
    CACHE.clear()
    with pytest.raises(DataError, match="None of the images could be decoded"):
        list(compute_features(dataset, LITE, 32))


def test_network_that_cannot_take_the_size_or_be_cut_is_refused(folder, monkeypatch):
    def refuse(_network):
        raise SplitError("its structure cannot be traced (TraceError)")

    dataset = load_dataset(folder)
    with pytest.raises(ConfigError, match="vit_b_16 cannot take images of 64"):
        next(compute_features(dataset, "vit_b_16", 64))
    monkeypatch.setattr(features, "split_network", refuse)
    message = r"cannot be analyzed: its structure.*Choose another backbone"
    with pytest.raises(DataError, match=message):
        next(compute_features(dataset, LITE, 32))


@pytest.mark.train
def test_swin_is_averaged_over_the_picture_where_rows_are_as_many_as_channels():
    network = build_network("swin_t", "none", 3, seed=1)
    pooled, _ = features.pool_stages(network)
    images = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = split_network(network).part(None, 1).eval()(images)
        assert whole.shape == (1, 96, 96, 96)
        torch.testing.assert_close(
            pooled(images)[:, :96], average(whole, (1, 2)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("backbone", "axes"),
    [("timm/test_resnet", (2, 3)), pytest.param("swin_t", (1, 2), marks=pytest.mark.train)],
)
def test_stages_are_the_cuts_of_a_cached_trunk(backbone, axes):
    network = build_network(backbone, "none", 3, seed=1)
    pooled, stages = features.pool_stages(network)
    segments = split_network(network)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = pooled(images).split(pooled.widths, dim=1)
        for cut, ours in enumerate(found, start=1):
            whole = segments.part(None, cut).eval()(images)
            torch.testing.assert_close(ours, average(whole, axes), rtol=1e-4, atol=1e-5)
    assert stages == tuple(stage.name for stage in network.stages[:-1])


@pytest.mark.train
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled under Linux only")
def test_the_pass_is_compiled_where_that_pays(folder, fake_compiler, monkeypatch):
    _, eager = compute(folder)
    assert fake_compiler.started == 0
    CACHE.clear()
    monkeypatch.setattr(feeding, "_BATCH", 2)
    fake_compiler.result = b"package"
    _, found = compute(folder)
    assert (fake_compiler.started, fake_compiler.used) == (1, 1)
    assert isinstance(fake_compiler.module, features.PooledStages)
    for ours, theirs in zip(found.by_stage, eager.by_stage, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_network_that_is_built_for_one_size_is_averaged_at_that_size():
    pooled, stages = features.pool_stages(build_network("timm/test_vit2", "none", 3, 0, 64))
    assert pooled(torch.zeros(2, 3, 64, 64)).shape == (2, sum(pooled.widths))
    assert len(pooled.widths) == len(stages) == 9


@pytest.mark.train
@pytest.mark.parametrize(
    "name",
    [
        LITE,
        "timm/test_vit2",
        pytest.param("timm/convit_tiny", marks=pytest.mark.train),
        pytest.param("timm/cait_xxs24_224", marks=pytest.mark.train),
        pytest.param("timm/vit_tiny_patch16_224", marks=pytest.mark.exhaustive),
    ],
)
def test_a_linear_probe_at_a_stage_sees_the_features_that_the_analysis_saw(name):
    whole = build_network(name, "none", 3, 0, 64)
    pooled, stages = features.pool_stages(whole)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_stage = dict(zip(stages, pooled(images).split(pooled.widths, dim=1), strict=True))
    for stage in (stages[0], stages[len(stages) // 2], stages[-1]):
        network = build_network(name, "none", 3, 0, 64, stage)
        network.model.set_submodule(network.heads[0], torch.nn.Identity())
        with torch.no_grad():
            torch.testing.assert_close(network.model(images), by_stage[stage], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_vit",
        pytest.param("timm/convit_tiny", marks=pytest.mark.train),
        pytest.param("timm/cait_xxs24_224", marks=pytest.mark.train),
    ],
)
def test_no_stage_is_seen_by_a_class_token_that_has_not_seen_the_image(name):
    pooled, _ = features.pool_stages(build_network(name, "none", 3, 0, 64))
    images = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (pooled(image).split(pooled.widths, dim=1) for image in images)
    assert all((first != second).any() for first, second in zip(one, other, strict=True))


def test_class_token_that_is_added_late_is_no_patch_before():
    network = build_network("timm/convit_tiny", "none", 3, 0, 64)
    pooled, stages = features.pool_stages(network)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    segments = split_network(network)
    names = [one.name for one in network.stages]
    with torch.no_grad():
        found = dict(zip(stages, pooled(images).split(pooled.widths, dim=1), strict=True))
        for stage, tokens in (("block9", 16), ("block10", 17), ("block11", 17)):
            output = segments.part(None, names.index(stage) + 1).eval()(images)
            assert output.shape[1] == tokens
            wanted = output[:, 0] if stage == "block11" else output.mean(1)
            torch.testing.assert_close(found[stage], wanted, rtol=1e-4, atol=1e-5)
