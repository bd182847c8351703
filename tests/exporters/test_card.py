import json

import pytest
import timm
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from finetune_core.config import Edit
from finetune_core.evaluation.single_run.evaluate import evaluation, score_run
from finetune_core.evaluation.single_run.scores import NAMES, format_range, format_value
from finetune_core.exporters.formats import export_run
from tests.exporters.conftest import SGD, colours, train_shared
from tests.factories import tiny_config, train


def export_card(run, tmp_path):
    return (export_run(run, "card", tmp_path / "card").folder / "README.md").read_text()


@pytest.mark.train
def test_the_card_can_be_read_by_hugging_face_and_tells_the_results(tmp_path):
    edits = (
        Edit(action="relabel", paths=("red/000.png",), to="blue"),
        Edit(action="exclude", paths=("red/001.png",)),
    )
    run = train_shared(backbone="efficientnet_lite0", edits=edits)
    text = export_card(run, tmp_path)
    card, result = ModelCard(text), evaluation(run)
    outcome = {one.metric_type: one for one in card.data.eval_results}
    assert outcome["accuracy"].metric_value == round(result.accuracy, 4)
    assert outcome["accuracy"].dataset_name == colours().name
    assert card.data.pipeline_tag == "image-classification"
    # A person chooses the licence of the fine-tuned weights.
    assert card.data.license is None
    for part in ("Data", "Recipe", "Results", "Limits", "Licence"):
        assert f"## {part}" in text
    table = score_run(run, result.split).table.set_index("name")
    for name in ("f1_macro", "matthews_corrcoef", "cohen_kappa", "precision_macro", "ece"):
        row = table.loc[name]
        value, span = format_value(name, row.value), format_range(name, row.low, row.high)
        assert f"| {NAMES[name]} | {value} | {span} |" in text
    for part in (
        "95 % interval",
        "Apache-2.0",
        "| Recall (95 % interval) |",
        r'| a "b", \|c\| |',
        "2 changes had been made",
        "Fewer than ten such images of",
    ):
        assert part in text


@pytest.mark.train
def test_the_card_tells_that_the_head_was_fitted_first(tmp_path):
    text = export_card(train_shared(initial_head="probe", epochs=1), tmp_path)
    assert "| Initial head | The initial head is a linear probe, fitted to 96 features of" in text


def test_random_weights_are_nobodys(tmp_path):
    text = export_card(train_shared(weights="none", test_fraction=0, epochs=1), tmp_path)
    assert "random weights, not pretrained" in text
    assert "no one else's weights" in text
    assert "a little optimistic" in text


@pytest.mark.train
def test_research_only_weights_say_so_first(tmp_path):
    config = {"input_size": [3, 160, 160], "license": "cc-by-nc-4.0"}
    described = {"architecture": "test_vit", "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "model.safetensors")
    changes = SGD | {"backbone": f"local-dir:{tmp_path}", "epochs": 1}
    text = export_card(train(tiny_config(colours(), **changes), tmp_path / "runs"), tmp_path)
    licence = text.partition("## Licence")[2]
    assert licence.index("For research only") < licence.index(r"cc\-by\-nc\-4.0")
    assert ModelCard(text).data.library_name == "timm"
    assert "pretrained on ImageNet" not in text
    # Paths of this machine are private.
    assert str(tmp_path) not in text
