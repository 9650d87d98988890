"""`csm models`, and docs/models.md, which says the same."""

from __future__ import annotations

from csm.formats.registry import KNOWN
from csm.formats.sesame import FLAVORS
from tests.conftest import ROOT, compose_train


def test_the_command_lists_them_and_shows_one(csm, capsys):
    assert csm("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[model.name, model.address] for model in KNOWN]
    assert [lines[1].split("  ")[-1], lines[2].split()[-1]] == ["modified MIT", "Apache-2.0"]
    for name in ("misotts", "MisoLabs/MisoTTS"):
        assert csm("models", name) == 0
        shown = capsys.readouterr().out
        found = {line[:10].strip(): line[11:] for line in shown.splitlines() if not line.startswith(" ")}
        assert (found["prompt"], found["preset"], found["gate"]) == ("[{speaker}] {text}", "csm_8b", "none")
        assert found["flavors"] == "llama-8B, llama-300M" and "The weights have not run here." in shown


def test_an_unknown_model_is_one_line(csm, capsys):
    assert csm("models", "csm-2b") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no model 'csm-2b' is known; known are csm-1b, misotts, marvis-250m,")


def test_the_page_agrees():
    rows = {}
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5:
            rows[name] = cells
    assert set(rows) - {"name", "---"} == {model.name for model in KNOWN}
    for model in KNOWN:
        address, stacks, licence, gate, layout = rows[model.name]
        assert (address, licence, gate) == (f"`{model.address}`", model.licence, model.gate)
        assert model.size.split(";")[0] == stacks
        layout, turn = layout.split("; ")
        assert layout.split()[0].strip(",") == model.layout.split()[0].strip(",;")
        assert turn == f"`{model.prompt.format(speaker=0, text='text')}`"


def test_presets_have_the_shapes_of_their_flavors():
    for model in KNOWN:
        if model.preset is not None:
            config = compose_train([f"model={model.preset}", "data.path=x"]).model
            assert model.flavors is not None
            assert (config.backbone, config.decoder) == tuple(FLAVORS[name] for name in model.flavors)
