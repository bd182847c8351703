import json

import timm
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from finetune_core.evaluation.single_run.evaluate import evaluation, scores
from finetune_core.evaluation.single_run.scores import NAMES
from finetune_core.exporters.formats import export_run


def test_the_card_can_be_read_by_hugging_face_and_tells_the_results(run, tmp_path):
    text = (export_run(run, "card", tmp_path / "card").folder / "README.md").read_text()
    card, result = ModelCard(text), evaluation(run)
    outcome = {one.metric_type: one for one in card.data.eval_results}
    assert outcome["accuracy"].metric_value == round(result.accuracy, 4)
    assert outcome["accuracy"].dataset_name == "colours"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license is None  # of the fine-tuned weights: for a person to choose
    for part in (
        "## Data",
        "## Recipe",
        "## Results",
        "95 % interval",
        "## Limits",
        "## Licence",
        "Apache-2.0",
    ):
        assert part in text
    table = scores(run, result.split).table.set_index("name")
    for name in ("f1_macro", "matthews_corrcoef", "cohen_kappa", "precision_macro", "ece"):
        row = table.loc[name]
        assert f"| {NAMES[name]} | {row.value:.3f} | {row.low:.3f} to {row.high:.3f} |" in text
    assert "| Recall (95 % interval) |" in text
    assert r'| a "b", \|c\| |' in text
    assert "2 changes had been made" in text
    assert "Fewer than ten such images of" in text


def test_random_weights_are_nobodys(train, colours, tmp_path):
    run = train(
        colours,
        tmp_path / "runs",
        backbone="shufflenet_v2_x0_5",
        weights="none",
        test_fraction=0,
        epochs=1,
    )
    text = (export_run(run, "card").folder / "README.md").read_text()
    assert "random weights, not pretrained" in text
    assert "no one else's weights" in text
    assert "a little optimistic" in text


def test_research_only_weights_say_so_first(train, colours, tmp_path):
    config = {"input_size": [3, 160, 160], "license": "cc-by-nc-4.0"}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "pretrained_cfg": config})
    )
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "model.safetensors")
    run = train(colours, tmp_path / "runs", backbone=f"local-dir:{tmp_path}", epochs=1)
    text = (export_run(run, "card").folder / "README.md").read_text()
    licence = text.partition("## Licence")[2]
    assert licence.index("For research only") < licence.index(r"cc\-by\-nc\-4.0")
    assert ModelCard(text).data.library_name == "timm"
    assert "pretrained on ImageNet" not in text
    assert str(tmp_path) not in text  # nobody else's business
    assert run.run_dir.parent == tmp_path / "runs"
