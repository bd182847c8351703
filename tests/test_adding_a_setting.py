"""A setting is declared once: form and command line need nothing but its field."""

import ast
import importlib
import runpy
from pathlib import Path

import pytest
from pydantic import create_model
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from finetune_core import config
from finetune_core.config import make, run_config
from finetune_core.config.metadata import OPTIMIZATION, setting
from finetune_core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("pages.shared.runs.first_run", "pages.shared.configure.advice")
HELP = "How much of the last step the next one keeps."


@pytest.fixture(autouse=True)
def momentum(monkeypatch):
    """Add one more setting."""
    declared = setting(
        0.9, label="Momentum", section=OPTIMIZATION, help=HELP, share=True, ge=0, lt=1
    )
    extended = create_model("Extended", __base__=config.RunConfig, momentum=(float, declared))
    # A module that is first imported while the class is replaced would keep the wrong class.
    for page in PAGES:
        importlib.import_module(page)
    for module in (config, run_config, make):
        monkeypatch.setattr(module, "RunConfig", extended)


def test_it_is_validated_and_kept():
    assert config.make_config({"data": "x"}).momentum == 0.9
    made = config.make_config({"data": "x", "momentum": "95 %"})
    assert config.make_config(made.model_dump(mode="json")).momentum == 0.95
    with pytest.raises(ConfigError, match="momentum: must be less than 1"):
        config.make_config({"data": "x", "momentum": 2})


@pytest.mark.train
def test_the_command_line_has_an_option_for_it():
    # Created again, as at the start of a program.
    app = runpy.run_path(str(ROOT / "finetune_core" / "__main__.py"))["app"]

    def thaw(*arguments):
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})

    for command in ("train", "compare"):
        text = " ".join(thaw(command, "--help").stdout.replace("│", " ").split())
        assert "--momentum" in text
        assert f"{HELP} (at least 0, less than 1; default 0.9)" in text
    refused = thaw("train", "digits", "--momentum", "200 %")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--momentum: must be less than 1" in refused.stderr


def test_the_form_has_a_field_for_it_in_its_section():
    at = (
        AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
        .switch_page("pages/configure.py")
        .run()
    )
    assert not at.exception
    field = at.text_input(key="form_momentum")
    assert (field.label, field.help, field.value) == ("Momentum", HELP, "0.9")
    field.set_value("95 %").run()
    assert not at.exception
    assert "settings" in at.query_params
    at.text_input(key="form_momentum").set_value("2").run()
    said = "Momentum must be less than 1"
    assert any(said in one.value for one in at.markdown)
    assert at.session_state["more_settings"] is True


def listed_by_hand(source):
    """Return collections and signatures in a file that name more than four settings."""
    known = config.RunConfig.model_fields
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
            inside = node.keys if isinstance(node, ast.Dict) else node.elts
            found = [
                one.value for one in inside if isinstance(one, ast.Constant) and one.value in known
            ]
        elif isinstance(node, ast.FunctionDef):
            found = [
                one.arg for one in (*node.args.args, *node.args.kwonlyargs) if one.arg in known
            ]
        else:
            continue
        if len(found) > 4:
            yield node.lineno, found


def test_no_page_and_no_command_lists_settings_by_hand():
    files = [
        *ROOT.glob("pages/**/*.py"),
        *ROOT.glob("finetune_core/commands/*.py"),
        ROOT / "finetune_core" / "__main__.py",
    ]
    found = {file.name: list(listed_by_hand(file.read_text(encoding="utf-8"))) for file in files}
    assert not {name: lists for name, lists in found.items() if lists}
